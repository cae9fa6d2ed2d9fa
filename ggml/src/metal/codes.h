#pragma once
// Codes of 16 places of a block, as lane_order.h lays them out: a lane's words from memory to registers and back.
#include "metal/memory.h"

namespace zipcache {
namespace gpu {

// A lane's words of 16 places of a plane of width W, 16 bytes at a time where they are that many.
template <int W, int D>
inline void load_words(device const uchar * plane, int step, int lane, thread uint (&words)[lane_words(D, W)]) {
    constexpr int n = lane_words(D, W), v = vector_words(n);
    device const uchar * at = plane + (step * n * kLanes + lane * v) * 4;
    UNROLL
    for (int i = 0; i < n; i += v, at += v * kLanes * 4) {
        if (v == 4) {
            const uint4 x = *reinterpret_cast<device const uint4 *>(at);
            words[i] = x.x;
            words[(i + 1) % n] = x.y;
            words[(i + 2) % n] = x.z;
            words[(i + 3) % n] = x.w;
        } else if (v == 2) {
            const uint2 x = *reinterpret_cast<device const uint2 *>(at);
            words[i] = x.x;
            words[(i + 1) % n] = x.y;
        } else {
            words[i] = *reinterpret_cast<device const uint *>(at);
        }
    }
}

template <int W, int D>
inline void store_words(device uchar * plane, int step, int lane, thread const uint (&words)[lane_words(D, W)]) {
    constexpr int n = lane_words(D, W), v = vector_words(n);
    UNROLL
    for (int i = 0; i < n; ++i) {
        reinterpret_cast<device uint *>(plane)[((step * (n / v) + i / v) * kLanes + lane) * v + i % v] = words[i];
    }
}

// Adds the codes of a plane, their bits from `low` on.
template <int W, int D>
inline void add_plane(device const uchar * plane, int step, int lane, int low, thread uint (&regs)[D / 8]) {
    uint words[lane_words(D, W)];
    load_words<W, D>(plane, step, lane, words);
    constexpr uint mask = W == 8 ? ~0u : 0x01010101u * ((1u << (W % 8)) - 1);
    UNROLL
    for (int r = 0; r < D / 8; ++r) {
        regs[r] |= (words[r / (8 / W)] >> (r % (8 / W) * W) & mask) << low;
    }
}

// Registers of 16 places of a block of n_steps times 16. bits: 0 to 8.
template <int D>
inline void load_codes(device const uchar * codes, int bits, int n_steps, int step, int lane,
                       thread uint (&regs)[D / 8]) {
    UNROLL
    for (int r = 0; r < D / 8; ++r) {
        regs[r] = 0;
    }
    if (bits == 8) {
        add_plane<8, D>(codes, step, lane, 0, regs);
        return;
    }
    if (bits & 4) {
        add_plane<4, D>(codes, step, lane, 0, regs);
        codes += n_steps * step_bytes(D, 4);
    }
    if (bits & 2) {
        add_plane<2, D>(codes, step, lane, bits & 4, regs);
        codes += n_steps * step_bytes(D, 2);
    }
    if (bits & 1) {
        add_plane<1, D>(codes, step, lane, bits & 6, regs);
    }
}

template <int W, int D>
inline void store_plane(device uchar * plane, int step, int lane, int low, thread const uint (&regs)[D / 8]) {
    uint words[lane_words(D, W)];
    UNROLL
    for (int i = 0; i < lane_words(D, W); ++i) {
        words[i] = 0;
    }
    constexpr uint mask = W == 8 ? ~0u : 0x01010101u * ((1u << (W % 8)) - 1);
    UNROLL
    for (int r = 0; r < D / 8; ++r) {
        words[r / (8 / W)] |= (regs[r] >> low & mask) << (r % (8 / W) * W);
    }
    store_words<W, D>(plane, step, lane, words);
}

template <int D>
inline void store_codes(device uchar * codes, int bits, int n_steps, int step, int lane,
                        thread const uint (&regs)[D / 8]) {
    if (bits == 8) {
        store_plane<8, D>(codes, step, lane, 0, regs);
        return;
    }
    if (bits & 4) {
        store_plane<4, D>(codes, step, lane, 0, regs);
        codes += n_steps * step_bytes(D, 4);
    }
    if (bits & 2) {
        store_plane<2, D>(codes, step, lane, bits & 4, regs);
        codes += n_steps * step_bytes(D, 2);
    }
    if (bits & 1) {
        store_plane<1, D>(codes, step, lane, bits & 6, regs);
    }
}

// Which code a byte of a register is.
struct CodeSpot {
    int place;  // of 16
    int channel;
};

template <int D>
inline CodeSpot key_spot(int reg, int byte, int lane) {
    CodeSpot spot;
    spot.place = reg / (D / 16) * 8 + lane / 4;
    spot.channel = reg % (D / 16) * 16 + lane % 4 * 4 + byte;
    return spot;
}

inline CodeSpot value_spot(int reg, int byte, int lane) {
    CodeSpot spot;
    spot.place = byte / 2 * 8 + lane % 4 * 2 + byte % 2;
    spot.channel = reg * 8 + lane / 4;
    return spot;
}

}  // namespace gpu
}  // namespace zipcache

#pragma once
// What all parts of the attend_kv kernel share. One warp works on one unit at a time: a block of a segment, or 32
// tokens of the window. Lane l has row l / 4 (a query head) and quarter l % 4, as in a C fragment of mma.m16n8k32.
#include "attend_kv_launch.h"
#include "cuda/ptx.cuh"
#include "cuda_index.h"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {

constexpr int kWindowTokens = 32;  // of a unit
constexpr float kMost = 32000;     // of a query or a probability as an integer of 16 bits
constexpr float kMagic =
    12582912 + 128;  // 1.5 * 2^23: a float's low bits are then an integer; 128 rounds its high byte
constexpr float kTop = format::kTopRange;
constexpr float kLog2e = 1.4426950408889634f;

template <int D>
struct Shape {
    static constexpr int kRegs = D / 8;     // of 16 places; also the tiles of 8 channels
    static constexpr int kSteps = D / 16;   // of 16 channels
    static constexpr int kQuarter = D / 4;  // channels of a lane
    static constexpr int kSlot =
        72 * D;  // bytes that half a unit takes at most: 8-bit codes, parameters by 32 channels
    static constexpr int kWarps = D >= 256 ? 6 : D >= 128 ? 12 : 16;  // at most: as many as shared memory takes
    static constexpr int kRedStride = D + 8;                          // floats; spreads the rows over the banks
    static constexpr int kQueries = kRows * D * int(sizeof(float));

    // Shared memory of a block of so many warps: two slots each, and the queries, later their sums.
    static constexpr int ring_bytes(int n_warps) { return n_warps * 2 * kSlot; }
    static constexpr int shared_bytes(int n_warps) { return ring_bytes(n_warps) + kQueries; }
};

// The f32 whose integer kMagic put in its low bits: four of them as the bytes of high and of low halves.
__device__ __forceinline__ void pack_bytes(const float (&x)[4], uint32_t & high, uint32_t & low) {
    const uint32_t a = __float_as_uint(x[0]), b = __float_as_uint(x[1]);
    const uint32_t c = __float_as_uint(x[2]), d = __float_as_uint(x[3]);
    const uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);  // low a, low b, high a, high b
    low = __byte_perm(ab, cd, 0x5410) ^ 0x80808080u;
    high = __byte_perm(ab, cd, 0x7632);
}

// range_of() of byte `i` of a word.
__device__ __forceinline__ float range_at(uint32_t word, int i) {
    return __uint_as_float((__byte_perm(word, 0, 0x4440 + i) << 19) + (127u << 23)) - 1.0f;
}

__device__ __forceinline__ float signed_at(uint32_t word, int i) {
    return static_cast<float>(static_cast<int8_t>(word >> (8 * i)));
}

// Halves of a 16-bit integer meet the codes in rows of their own.
__device__ __forceinline__ float whole(int high, int low) {
    return static_cast<float>(high * 256 + low);
}

template <int W, int D>
struct Words {
    static constexpr int kN = lane_words(D, W), kV = vector_words(kN);

    // The one that holds register `reg`, of 16 places. Neighbouring calls share loads.
    static __device__ __forceinline__ uint32_t at(const uint8_t * plane, int step, int lane, int reg) {
        const int word = reg / (8 / W);
        const auto * from = plane + ((step * (kN / kV) + word / kV) * kLanes + lane) * (kV * 4);
        if constexpr (kV == 4) {
            const uint4 v = *reinterpret_cast<const uint4 *>(from);
            return word % 4 == 0 ? v.x : word % 4 == 1 ? v.y : word % 4 == 2 ? v.z : v.w;
        } else if constexpr (kV == 2) {
            const uint2 v = *reinterpret_cast<const uint2 *>(from);
            return word % 2 == 0 ? v.x : v.y;
        } else {
            return *reinterpret_cast<const uint32_t *>(from);
        }
    }
};

template <int Width>
__device__ __forceinline__ uint32_t bits_at(uint32_t word, int reg, int low) {
    constexpr uint32_t kMask = 0x01010101u * ((1u << Width) - 1);
    const int shift = reg % (8 / Width) * Width - low;
    return (shift >= 0 ? word >> shift : word << -shift) & (kMask << low);
}

// Registers [first, first + N) of 16 places of codes of Bits bits; n_steps: 16 places each, that the block has.
template <int Bits, int D, int N>
__device__ __forceinline__ void unpack(const uint8_t * codes, int n_steps, int step, int lane, int first,
                                       uint32_t (&regs)[N]) {
    if constexpr (Bits == 8) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            regs[i] = Words<8, D>::at(codes, step, lane, first + i);
        }
        return;
    }
    const uint8_t * plane = codes;
    constexpr bool k4 = Bits & 4, k2 = Bits & 2, k1 = Bits & 1;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        regs[i] = 0;
    }
    if constexpr (k4) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            regs[i] = bits_at<4>(Words<4, D>::at(plane, step, lane, first + i), first + i, 0);
        }
        plane += n_steps * lane_words(D, 4) * kLanes * 4;
    }
    if constexpr (k2) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            regs[i] |= bits_at<2>(Words<2, D>::at(plane, step, lane, first + i), first + i, k4 ? 4 : 0);
        }
        plane += n_steps * lane_words(D, 2) * kLanes * 4;
    }
    if constexpr (k1) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            regs[i] |=
                bits_at<1>(Words<1, D>::at(plane, step, lane, first + i), first + i, (k4 ? 4 : 0) + (k2 ? 2 : 0));
        }
    }
}

// Calls body(Int<bits>) with the code's length as a constant.
template <int N>
struct Int {
    static constexpr int value = N;
};

template <class Body>
__device__ __forceinline__ void with_bits(int bits, Body && body) {
    switch (bits) {
        case 1: body(Int<1>()); break;
        case 2: body(Int<2>()); break;
        case 3: body(Int<3>()); break;
        case 4: body(Int<4>()); break;
        case 5: body(Int<5>()); break;
        case 6: body(Int<6>()); break;
        case 7: body(Int<7>()); break;
        case 8: body(Int<8>()); break;
        default: break;
    }
}

struct Param {
    float scale, min;
};

// As format::Params::at, of parameters of tokens. kind is uniform over the warp.
struct TokenParams {
    const uint8_t * data;
    int kind, n;                  // entries
    float unit, step, low, bias;  // of the range; shrink / (2^b - 1); shrink / 2; 2^(b - 1)

    __device__ __forceinline__ Param at(int i) const {
        if (kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
            const float2 p = __half22float2(reinterpret_cast<const __half2 *>(data)[i]);
            return {p.x, p.y};
        }
        if (kind == GGML_ZIPCACHE_PARAMS_F16_SCALE) {
            const float scale = __half2float(reinterpret_cast<const __half *>(data)[i]);
            return {scale, -bias * scale};
        }
        const float range = range_at(data[i], 0) * unit;
        const float middle =
            kind == GGML_ZIPCACHE_PARAMS_F8_PAIR ? float(static_cast<int8_t>(data[n + i])) * (1.0f / 256) : 0.0f;
        return {range * step, range * (middle - low)};
    }
};

__device__ __forceinline__ TokenParams token_params(const uint8_t * data, int kind, int n, float unit, float shrink,
                                                    int bits) {
    return {data, kind, n, unit, shrink / float((1 << bits) - 1), shrink / 2, float(1 << bits) / 2};
}

// Walsh-Hadamard over a lane's and its quad's channels. kIn: bits of the channel that number registers below the
// quarter's two; x [N], the registers of a lane: register i has channel i >> kIn << (kIn + 2) | quarter << kIn |
// i % (1 << kIn).
template <int kIn, int N>
__device__ __forceinline__ void quad_hadamard(float (&x)[N], int size, float norm) {
#pragma unroll
    for (int half = 1; half < N; half *= 2) {
        const int span = half < (1 << kIn) ? half : half * 4;  // of channels
        if (span < size) {
#pragma unroll
            for (int i = 0; i < N; ++i) {
                if (!(i & half) && (i | half) < N) {
                    const float a = x[i], b = x[i | half];
                    x[i] = a + b;
                    x[i | half] = a - b;
                }
            }
        }
    }
#pragma unroll
    for (int lane_bit = 1; lane_bit <= 2; lane_bit *= 2) {
        const bool upper = threadIdx.x & lane_bit;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float other = __shfl_xor_sync(~0u, x[i], lane_bit);
            x[i] = upper ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        x[i] *= norm;
    }
}

}  // namespace zipcache::cuda

#pragma once
// Codes as bytes, and as planes of bits; format.h has the layout. Works on four bytes at a time.
#include <cstring>

#include "format.h"

namespace zipcache::format {

// Codes of a block lie as [n_places, code_stride] bytes: whole vectors of every plane, zeros beyond head_dim.
constexpr int code_stride(int head_dim) {
    return (head_dim + 63) / 64 * 64;
}

inline uint32_t load_word(const uint8_t * from) {
    uint32_t word;
    std::memcpy(&word, from, sizeof word);
    return word;
}

inline void store_word(uint8_t * to, uint32_t word) {
    std::memcpy(to, &word, sizeof word);
}

// One plane of width W of keys, codes' bits from `low` on. A word: four channels of a place.
template <int W, bool Pack, class Plane, class Codes>
void key_plane(Plane * plane, Codes * codes, int n_places, int dim, int low) {
    constexpr uint32_t mask = 0x01010101u * ((1 << W) - 1);
    constexpr int channels = 32 / W;
    const int stride = code_stride(dim);
    for (int place = 0; place < n_places; place += 8) {
        for (int first = 0; first < dim; first += channels, plane += kVector) {
            for (int p = 0; p < 8; ++p) {
                Codes * at = codes + (place + p) * stride + first;
                if constexpr (Pack) {
                    uint32_t word = 0;
                    for (int s = 0; s < 8 / W; ++s) {
                        word |= (load_word(at + s * 4) >> low & mask) << (s * W);
                    }
                    store_word(plane + p * 4, word);
                } else {
                    const uint32_t word = load_word(plane + p * 4);
                    for (int s = 0; s < 8 / W; ++s) {
                        store_word(at + s * 4, load_word(at + s * 4) | (word >> (s * W) & mask) << low);
                    }
                }
            }
        }
    }
}

// The same of values. A word: four places of a channel.
template <int W, bool Pack, class Plane, class Codes>
void value_plane(Plane * plane, Codes * codes, int n_places, int dim, int low) {
    constexpr int mask = (1 << W) - 1, channels = 64 / W;
    const int stride = code_stride(dim);
    for (int place = 0; place < n_places; place += 4) {
        for (int first = 0; first < dim; first += channels, plane += kVector) {
            for (int s = 0; s < 8 / W; ++s) {
                for (int p = 0; p < 4; ++p) {
                    Codes * at = codes + (place + p) * stride + first + s * 8;
                    for (int c = 0; c < 8; ++c) {
                        if constexpr (Pack) {
                            plane[c * 4 + p] |= static_cast<uint8_t>((at[c] >> low & mask) << (s * W));
                        } else {
                            at[c] |= static_cast<uint8_t>((plane[c * 4 + p] >> (s * W) & mask) << low);
                        }
                    }
                }
            }
        }
    }
}

template <bool Pack, class Plane, class Codes>
void each_plane(Plane * plane, Codes * codes, int n_places, int dim, int bits, bool is_key) {
    const Planes planes = planes_of(bits);
    for (int i = 0, low = 0; i < planes.n; low += planes.width[i++]) {
        switch (planes.width[i]) {
            case 4:
                (is_key ? key_plane<4, Pack, Plane, Codes> : value_plane<4, Pack, Plane, Codes>) (plane, codes,
                                                                                                  n_places, dim, low);
                break;
            case 2:
                (is_key ? key_plane<2, Pack, Plane, Codes> : value_plane<2, Pack, Plane, Codes>) (plane, codes,
                                                                                                  n_places, dim, low);
                break;
            default:
                (is_key ? key_plane<1, Pack, Plane, Codes> : value_plane<1, Pack, Plane, Codes>) (plane, codes,
                                                                                                  n_places, dim, low);
        }
        plane += is_key ? k_plane_bytes(n_places, dim, planes.width[i]) : v_plane_bytes(n_places, dim, planes.width[i]);
    }
}

// planes hold zeros
inline void pack(const uint8_t * codes, int n_places, int dim, int bits, bool is_key, uint8_t * planes) {
    each_plane<true>(planes, codes, n_places, dim, bits, is_key);
}

// codes hold zeros
inline void unpack(const uint8_t * planes, int n_places, int dim, int bits, bool is_key, uint8_t * codes) {
    each_plane<false>(planes, codes, n_places, dim, bits, is_key);
}

}  // namespace zipcache::format

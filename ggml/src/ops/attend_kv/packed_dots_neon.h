#pragma once
// The sums of packed_simd.h in 16-byte registers: one holds four places (keys) or four channels (values), half of a
// vector of the format. Include it as that file.
//
// Ops::dot<Quad>(sum, codes, bytes): sum + for each 32-bit lane the dot product of four int8 codes with bytes
// [4 Quad, 4 Quad + 4). Codes of 8 bits are made signed by taking 128 away, which the sums are given beforehand.
// (USDOT of the i8mm extension would spare these codes that, and the others nothing; SMMLA wants eight channels in a
// row where the format has four. So there is no level for i8mm.)
// Counted in what GCC 12 makes of it for three queries and codes of 4 bits with SDOT: 204 instructions for 512 codes of
// keys, 47 for 128 of values.

#include "packed_simd.h"

constexpr int kHalf = kVector / 2;

// Codes of sub-vector Sub, counted from the vectors that `plane` points at; the planes joined up to Plane. Bits above
// its own are left to the next plane, which overwrites them.
template <int Bits, int Sub, int Plane>
inline uint8x16_t joined(const uint8_t * const * plane) {
    constexpr int width = planes_of(Bits).width[Plane], subs = 8 / width, shift = Sub % subs * width;
    uint8x16_t bits = vld1q_u8(plane[Plane] + Sub / subs * kVector);
    if constexpr (shift > 0) {
        bits = vshrq_n_u8(bits, shift);
    }
    if constexpr (Plane > 0) {
        constexpr int low = plane_low<Bits>(Plane);
        const uint8x16_t lower = joined<Bits, Sub, Plane - 1>(plane);  // the intrinsic is a macro in clang
        bits = vsliq_n_u8(lower, bits, low);
    }
    return bits;
}

template <int Bits, int Sub>
inline int8x16_t codes_of(const uint8_t * const * plane) {
    constexpr int last = planes_of(Bits).n - 1, subs = 8 / planes_of(Bits).width[last];
    uint8x16_t codes = joined<Bits, Sub, last>(plane);
    if constexpr (Bits == 8) {
        codes = veorq_u8(codes, vdupq_n_u8(128));
    } else if constexpr (Sub % subs + 1 < subs) {  // the uppermost has nothing above it
        codes = vandq_u8(codes, vdupq_n_u8((1 << Bits) - 1));
    }
    return vreinterpretq_s8_u8(codes);
}

// What taking 128 away takes from the dot product with bytes [n]; n a multiple of 8.
template <int Bits>
inline int32x4_t start_of(const int8_t * bytes, int n) {
    int32_t sum = 0;
    for (int i = 0; Bits == 8 && i < n; i += 8) {
        sum += vaddlv_s8(vld1_s8(bytes + i));
    }
    return vdupq_n_s32(128 * sum);
}

// sum [2 Tiles][Queries] += codes . q8 for N sub-vectors of four channels. plane: of the first tile at the first
// channel; tile_bytes: from a tile to the next, for each plane.
template <class Ops, int Queries, int Bits, int Tiles, int N>
inline void key_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, const int8_t * q8,
                      int32x4_t (*sum)[Queries]) {
    constexpr int halves = 2 * Tiles;
    const uint8_t * at[halves][3];
    for (int h = 0; h < halves; ++h) {
        for (int p = 0; p < planes_of(Bits).n; ++p) {
            at[h][p] = plane[p] + h / 2 * tile_bytes[p] + h % 2 * kHalf;
        }
    }
    each<N>([&](auto s) {
        int8x16_t codes[halves];
        for (int h = 0; h < halves; ++h) {
            codes[h] = codes_of<Bits, s.value>(at[h]);
        }
        for (int i = 0; i < Queries; ++i) {
            const int8x8_t query = vld1_s8(q8 + i * kMaxDim + s.value / 2 * 8);
            for (int h = 0; h < halves; ++h) {
                sum[h][i] = Ops::template dot<s.value % 2>(sum[h][i], codes[h], query);
            }
        }
    });
}

template <class Ops, int Queries, int Bits, int Tiles>
inline void key_tiles(const uint8_t * const * plane, const int64_t * tile_bytes, int first, int last, const int8_t * q8,
                      int32_t * sums) {
    int32x4_t sum[2 * Tiles][Queries];
    for (int i = 0; i < Queries; ++i) {
        const int32x4_t start = start_of<Bits>(q8 + i * kMaxDim + first, last - first);
        for (int h = 0; h < 2 * Tiles; ++h) {
            sum[h][i] = start;
        }
    }
    const uint8_t * at[3];
    for (int channel = first; channel < last; channel += kChunk) {
        for (int p = 0; p < planes_of(Bits).n; ++p) {
            at[p] = plane[p] + channel / kChunk * planes_of(Bits).width[p] * kVector;
        }
        const int8_t * q = q8 + channel;
        if (last - channel >= kChunk) {
            key_chunk<Ops, Queries, Bits, Tiles, 8>(at, tile_bytes, q, sum);
        } else if (last - channel >= 24) {
            key_chunk<Ops, Queries, Bits, Tiles, 6>(at, tile_bytes, q, sum);
        } else if (last - channel >= 16) {
            key_chunk<Ops, Queries, Bits, Tiles, 4>(at, tile_bytes, q, sum);
        } else {
            key_chunk<Ops, Queries, Bits, Tiles, 2>(at, tile_bytes, q, sum);
        }
    }
    for (int h = 0; h < 2 * Tiles; ++h) {
        for (int i = 0; i < Queries; ++i) {
            vst1q_s32(sums + i * kMaxPlaces + h * 4, sum[h][i]);
        }
    }
}

template <class Ops, int Queries, int Bits, int N, int Odd>
inline void value_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, int n_places, const int8_t * w8,
                        const float * scale, float * out) {
    using V = typename Ops::Floats;
    constexpr int n_planes = planes_of(Bits).n;
    int32x4_t start[Queries];
    for (int i = 0; i < Queries; ++i) {
        start[i] = start_of<Bits>(w8 + i * kMaxPlaces, n_places);
    }
    for (int half = 0; half < 2; ++half) {
        const uint8_t * at[3];
        for (int p = 0; p < n_planes; ++p) {
            at[p] = plane[p] + half * kHalf;
        }
        int32x4_t sum[Queries][N];
        for (int i = 0; i < Queries; ++i) {
            for (int s = 0; s < N; ++s) {
                sum[i][s] = start[i];
            }
        }
        for (int place = 0; place < n_places; place += 8) {
            int8x8_t weight[Queries];
            for (int i = 0; i < Queries; ++i) {
                weight[i] = vld1_s8(w8 + i * kMaxPlaces + place);
            }
            each<2>([&](auto step) {
                constexpr int quad = step.value;
                each<N>([&](auto s) {
                    const int8x16_t codes = codes_of<Bits, Odd * 4 + s.value>(at);
                    for (int i = 0; i < Queries; ++i) {
                        sum[i][s.value] = Ops::template dot<quad>(sum[i][s.value], codes, weight[i]);
                    }
                });
                for (int p = 0; p < n_planes; ++p) {
                    at[p] += tile_bytes[p];
                }
            });
        }
        for (int i = 0; i < Queries; ++i) {
            for (int s = 0; s < N; ++s) {
                float * to = out + i * kMaxDim + s * 8 + half * 4;
                V::fma({vcvtq_f32_s32(sum[i][s])}, V::set(scale[i]), V::load(to)).store(to);
            }
        }
    }
}

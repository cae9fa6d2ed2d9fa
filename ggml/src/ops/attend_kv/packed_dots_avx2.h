#pragma once
// The sums of packed_simd.h in 32-byte registers: one holds eight places (keys) or eight channels (values). Included
// as that file is, and after it.
//
// Ops::dot<Bits>(sum, codes, bytes): sum + for each 32-bit lane the dot product of four unsigned codes with four int8.

#include "packed_simd.h"

inline __m256i four(const int8_t * bytes) {
    int32_t word;
    std::memcpy(&word, bytes, sizeof word);
    return _mm256_set1_epi32(word);
}

// Bits [Shift, Shift + W) of each byte of `from`, moved to bit Low.
template <int W, int Shift, int Low>
inline __m256i plane_bits(__m256i from) {
    const __m256i moved = Shift >= Low ? _mm256_srli_epi16(from, Shift >= Low ? Shift - Low : 0)
                                       : _mm256_slli_epi16(from, Shift >= Low ? 0 : Low - Shift);
    return _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(((1 << W) - 1) << Low)));
}

// Codes of sub-vector Sub, counted from the vectors that `plane` points at; the planes joined.
template <int Bits, int Sub, int Plane = 0>
inline __m256i joined(const uint8_t * const * plane) {
    constexpr int width = planes_of(Bits).width[Plane], subs = 8 / width;
    const auto * at = reinterpret_cast<const __m256i *>(plane[Plane] + Sub / subs * kVector);
    const __m256i bits = plane_bits<width, Sub % subs * width, plane_low<Bits>(Plane)>(_mm256_loadu_si256(at));
    if constexpr (Plane + 1 < planes_of(Bits).n) {
        return _mm256_or_si256(bits, joined<Bits, Sub, Plane + 1>(plane));
    } else {
        return bits;
    }
}

// sum [Tiles][Queries] += codes . q8 for N sub-vectors of four channels. plane: of the first tile at the first channel;
// tile_bytes: from a tile to the next, for each plane.
template <class Ops, int Queries, int Bits, int Tiles, int N>
inline void key_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, const int8_t * q8,
                      __m256i (*sum)[Queries]) {
    const uint8_t * at[Tiles][3];
    for (int t = 0; t < Tiles; ++t) {
        for (int p = 0; p < planes_of(Bits).n; ++p) {
            at[t][p] = plane[p] + t * tile_bytes[p];
        }
    }
    each<N>([&](auto s) {
        __m256i code[Tiles];
        for (int t = 0; t < Tiles; ++t) {
            code[t] = joined<Bits, s.value>(at[t]);
        }
        for (int i = 0; i < Queries; ++i) {
            const __m256i query = four(q8 + i * kMaxDim + s.value * 4);
            for (int t = 0; t < Tiles; ++t) {
                sum[t][i] = Ops::template dot<Bits>(sum[t][i], code[t], query);
            }
        }
    });
}

template <class Ops, int Queries, int Bits, int Tiles>
inline void key_tiles(const uint8_t * const * plane, const int64_t * tile_bytes, int first, int last, const int8_t * q8,
                      int32_t * sums) {
    __m256i sum[Tiles][Queries];
    for (int t = 0; t < Tiles; ++t) {
        for (int i = 0; i < Queries; ++i) {
            sum[t][i] = _mm256_setzero_si256();
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
    for (int t = 0; t < Tiles; ++t) {
        for (int i = 0; i < Queries; ++i) {
            _mm256_store_si256(reinterpret_cast<__m256i *>(sums + i * kMaxPlaces + t * 8), sum[t][i]);
        }
    }
}

template <class Ops, int Queries, int Bits, int N, int Odd>
inline void value_chunk(const uint8_t * const * plane, const int64_t * tile_bytes, int n_places, const int8_t * w8,
                        const float * scale, float * out) {
    using V = typename Ops::Floats;
    constexpr Planes planes = planes_of(Bits);
    const uint8_t * at[3];
    for (int p = 0; p < planes.n; ++p) {
        at[p] = plane[p];
    }
    __m256i sum[Queries][N];
    for (int i = 0; i < Queries; ++i) {
        for (int s = 0; s < N; ++s) {
            sum[i][s] = _mm256_setzero_si256();
        }
    }
    for (int place = 0; place < n_places; place += 4) {
        __m256i weight[Queries];
        for (int i = 0; i < Queries; ++i) {
            weight[i] = four(w8 + i * kMaxPlaces + place);
        }
        each<N>([&](auto s) {
            const __m256i code = joined<Bits, Odd * 4 + s.value>(at);
            for (int i = 0; i < Queries; ++i) {
                sum[i][s.value] = Ops::template dot<Bits>(sum[i][s.value], code, weight[i]);
            }
        });
        for (int p = 0; p < planes.n; ++p) {
            at[p] += tile_bytes[p];
        }
    }
    for (int i = 0; i < Queries; ++i) {
        for (int s = 0; s < N; ++s) {
            float * to = out + i * kMaxDim + s * 8;
            V::fma({_mm256_cvtepi32_ps(sum[i][s])}, V::set(scale[i]), V::load(to)).store(to);
        }
    }
}

#pragma once
// AVX2 registers of floats under the names the kernels are written in. The namespace has no name on purpose: no symbol
// compiled for this instruction set may be merged with another file's.
#include <immintrin.h>

#include <cmath>
#include <cstdint>

#include "simd/exp.h"

namespace zipcache::simd {
namespace {

struct Avx2 {
    static constexpr int lanes = 8;
    __m256 r;

    static Avx2 zero() { return {_mm256_setzero_ps()}; }
    static Avx2 set(float x) { return {_mm256_set1_ps(x)}; }
    static Avx2 load(const float * p) { return {_mm256_loadu_ps(p)}; }
    static Avx2 load_f16(const uint16_t * p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))};
    }
    // The even and the odd of 16 neighbours.
    static void load_f16_pairs(const uint16_t * p, Avx2 & even, Avx2 & odd) {
        const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        const __m256i halves = _mm256_permute4x64_epi64(
            _mm256_packus_epi32(_mm256_and_si256(x, _mm256_set1_epi32(0xFFFF)), _mm256_srli_epi32(x, 16)), 0xD8);
        even = {_mm256_cvtph_ps(_mm256_castsi256_si128(halves))};
        odd = {_mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
    }
    // 2^(u / 16) * (1 + u % 16 / 16) of bytes u
    static Avx2 load_f8(const uint8_t * p) {
        const __m256i u = _mm256_slli_epi32(_mm256_cvtepu8_epi32(eight(p)), 19);
        return {_mm256_castsi256_ps(_mm256_add_epi32(u, _mm256_set1_epi32(127 << 23)))};
    }
    static Avx2 load_i8(const int8_t * p) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(p)))}; }
    static Avx2 load_i32(const int32_t * p) {
        return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
    }
    void store(float * p) const { _mm256_storeu_ps(p, r); }
    void store_i8(int8_t * p) const {
        const __m256i wide = _mm256_cvtps_epi32(r);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(p), _mm_packs_epi16(words, words));
    }
    static Avx2 add(Avx2 a, Avx2 b) { return {_mm256_add_ps(a.r, b.r)}; }
    static Avx2 sub(Avx2 a, Avx2 b) { return {_mm256_sub_ps(a.r, b.r)}; }
    static Avx2 mul(Avx2 a, Avx2 b) { return {_mm256_mul_ps(a.r, b.r)}; }
    static Avx2 max(Avx2 a, Avx2 b) { return {_mm256_max_ps(a.r, b.r)}; }
    static Avx2 abs(Avx2 a) { return {_mm256_and_ps(a.r, _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF)))}; }
    // a, and 0 where x is -inf
    static Avx2 zero_where_infinite(Avx2 a, Avx2 x) {
        return {_mm256_and_ps(a.r, _mm256_cmp_ps(x.r, _mm256_set1_ps(-INFINITY), _CMP_GT_OQ))};
    }
    static Avx2 fma(Avx2 a, Avx2 b, Avx2 c) { return {_mm256_fmadd_ps(a.r, b.r, c.r)}; }
    static Avx2 round(Avx2 a) { return {_mm256_round_ps(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
    static Avx2 exp(Avx2 a) { return exp_polynomial(max(a, set(-87.0f))); }
    // p * 2^n for -126 <= n <= 0
    static Avx2 scale_by_power(Avx2 p, Avx2 n) {
        const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.r), _mm256_set1_epi32(127)), 23);
        return {_mm256_mul_ps(p.r, _mm256_castsi256_ps(bits))};
    }
    float sum() const {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(r), _mm256_extractf128_ps(r, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
    }
    float max() const {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(r), _mm256_extractf128_ps(r, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
    }

  private:
    static __m128i eight(const void * bytes) { return _mm_loadl_epi64(static_cast<const __m128i *>(bytes)); }
};

}  // namespace
}  // namespace zipcache::simd

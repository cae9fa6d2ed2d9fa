#pragma once
// AVX-512 registers of floats under the names the kernels are written in. The namespace has no name on purpose: no
// symbol compiled for this instruction set may be merged with another file's.
#include <immintrin.h>

#include <cstdint>

#include "simd/exp.h"

namespace zipcache::simd {
namespace {

struct Avx512 {
    static constexpr int lanes = 16;
    __m512 r;

    static Avx512 zero() { return {_mm512_setzero_ps()}; }
    static Avx512 set(float x) { return {_mm512_set1_ps(x)}; }
    static Avx512 load(const float * p) { return {_mm512_loadu_ps(p)}; }
    static Avx512 load_f16(const uint16_t * p) {
        return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)))};
    }
    void store(float * p) const { _mm512_storeu_ps(p, r); }
    static Avx512 add(Avx512 a, Avx512 b) { return {_mm512_add_ps(a.r, b.r)}; }
    static Avx512 sub(Avx512 a, Avx512 b) { return {_mm512_sub_ps(a.r, b.r)}; }
    static Avx512 mul(Avx512 a, Avx512 b) { return {_mm512_mul_ps(a.r, b.r)}; }
    static Avx512 max(Avx512 a, Avx512 b) { return {_mm512_max_ps(a.r, b.r)}; }
    static Avx512 fma(Avx512 a, Avx512 b, Avx512 c) { return {_mm512_fmadd_ps(a.r, b.r, c.r)}; }
    static Avx512 round(Avx512 a) { return {_mm512_roundscale_ps(a.r, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
    static Avx512 exp(Avx512 a) { return exp_polynomial(max(a, set(-87.0f))); }
    static Avx512 scale_by_power(Avx512 p, Avx512 n) { return {_mm512_scalef_ps(p.r, n.r)}; }
    float sum() const { return _mm512_reduce_add_ps(r); }
    float max() const { return _mm512_reduce_max_ps(r); }
};

}  // namespace
}  // namespace zipcache::simd

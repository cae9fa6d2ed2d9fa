#pragma once
// NEON registers of floats under the names the kernels are written in. The namespace has no name on purpose: no symbol
// compiled for one instruction set may be merged with another file's.
#include <arm_neon.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/exp.h"

namespace zipcache::simd {
namespace {

struct Neon {
    static constexpr int lanes = 4;
    float32x4_t r;

    static Neon zero() { return {vdupq_n_f32(0)}; }
    static Neon set(float x) { return {vdupq_n_f32(x)}; }
    static Neon load(const float * p) { return {vld1q_f32(p)}; }
    static Neon load_f16(const uint16_t * p) { return from_f16(vld1_u16(p)); }
    // The even and the odd of 8 neighbours.
    static void load_f16_pairs(const uint16_t * p, Neon & even, Neon & odd) {
        const uint16x4x2_t x = vld2_u16(p);
        even = from_f16(x.val[0]);
        odd = from_f16(x.val[1]);
    }
    // 2^(u / 16) * (1 + u % 16 / 16) of bytes u
    static Neon load_f8(const uint8_t * p) {
        const uint32x4_t u = vmovl_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_u32(four(p)))));
        return {vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32(u, 19), vdupq_n_u32(127U << 23)))};
    }
    static Neon load_i8(const int8_t * p) {
        return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(four(p))))))};
    }
    static Neon load_i32(const int32_t * p) { return {vcvtq_f32_s32(vld1q_s32(p))}; }
    void store(float * p) const { vst1q_f32(p, r); }
    void store_i8(int8_t * p) const {
        const int16x4_t words = vqmovn_s32(vcvtq_s32_f32(r));
        const uint32_t bytes = vget_lane_u32(vreinterpret_u32_s8(vqmovn_s16(vcombine_s16(words, words))), 0);
        std::memcpy(p, &bytes, sizeof bytes);
    }
    static Neon add(Neon a, Neon b) { return {vaddq_f32(a.r, b.r)}; }
    static Neon sub(Neon a, Neon b) { return {vsubq_f32(a.r, b.r)}; }
    static Neon mul(Neon a, Neon b) { return {vmulq_f32(a.r, b.r)}; }
    static Neon max(Neon a, Neon b) { return {vmaxq_f32(a.r, b.r)}; }
    static Neon abs(Neon a) { return {vabsq_f32(a.r)}; }
    // a, and 0 where x is -inf
    static Neon zero_where_infinite(Neon a, Neon x) {
        const uint32x4_t finite = vcgtq_f32(x.r, vdupq_n_f32(-INFINITY));
        return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.r), finite))};
    }
    static Neon fma(Neon a, Neon b, Neon c) { return {vfmaq_f32(c.r, a.r, b.r)}; }
    static Neon round(Neon a) { return {vrndnq_f32(a.r)}; }
    static Neon exp(Neon a) { return exp_polynomial(max(a, set(-87.0f))); }
    // p * 2^n for -126 <= n <= 0
    static Neon scale_by_power(Neon p, Neon n) {
        const int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.r), vdupq_n_s32(127)), 23);
        return {vmulq_f32(p.r, vreinterpretq_f32_s32(bits))};
    }
    float sum() const { return vaddvq_f32(r); }
    float max() const { return vmaxvq_f32(r); }

  private:
    static Neon from_f16(uint16x4_t x) { return {vcvt_f32_f16(vreinterpret_f16_u16(x))}; }
    static uint32x2_t four(const void * bytes) {
        uint32_t word;
        std::memcpy(&word, bytes, sizeof word);
        return vdup_n_u32(word);
    }
};

}  // namespace
}  // namespace zipcache::simd

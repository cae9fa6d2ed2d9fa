#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "attend_kv.h"
#include "simd/neon.h"

namespace zipcache::attend_kv {
namespace {

using namespace format;

struct NeonDot {
    using Floats = simd::Neon;

    template <int Quad>
    static int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x8_t bytes) {
        const int8x16_t quads = vreinterpretq_s8_s32(vdupq_lane_s32(vreinterpret_s32_s8(bytes), Quad));
        // two products of 127 * 127, or of -128 * 127, fit 16 bits
        const int16x8_t low = vmull_s8(vget_low_s8(codes), vget_low_s8(quads)), high = vmull_high_s8(codes, quads);
        return vpadalq_s16(sum, vpaddq_s16(low, high));
    }
};

#include "packed_dots_neon.h"
#include "window_simd.h"

}  // namespace

void window_neon(const WindowTask & task) {
    window_simd<simd::Neon>(task);
}

void packed_neon(const PackedTask & task) {
    packed_simd<NeonDot>(task);
}

}  // namespace zipcache::attend_kv

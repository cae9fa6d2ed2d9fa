#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "attend_kv.h"
#include "simd/neon.h"

namespace zipcache::attend_kv {
namespace {

using namespace format;

struct DotprodDot {
    using Floats = simd::Neon;

    template <int Quad>
    static int32x4_t dot(int32x4_t sum, int8x16_t codes, int8x8_t bytes) {
        return vdotq_lane_s32(sum, codes, bytes, Quad);
    }
};

#include "packed_dots_neon.h"

}  // namespace

void packed_dotprod(const PackedTask & task) {
    packed_simd<DotprodDot>(task);
}

}  // namespace zipcache::attend_kv

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "attend_kv.h"
#include "simd/avx2.h"

namespace zipcache::attend_kv {
namespace {

using namespace format;

struct VnniDot {
    using Floats = simd::Avx2;

    template <int Bits>
    static __m256i dot(__m256i sum, __m256i codes, __m256i bytes) {
        return _mm256_dpbusd_epi32(sum, codes, bytes);
    }
};

#include "packed_dots_avx2.h"

}  // namespace

void packed_vnni(const PackedTask & task) {
    packed_simd<VnniDot>(task);
}

}  // namespace zipcache::attend_kv

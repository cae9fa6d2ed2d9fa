#include <algorithm>
#include <cmath>
#include <cstring>

#include "attend_segment.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#include "simd/avx2.h"

namespace zipcache::attend_segment {
namespace {

using namespace format;

struct VnniDot {
    // sum + for each 32-bit lane the dot product of four unsigned codes (at most 15) with four int8
    static __m256i dot(__m256i sum, __m256i codes, __m256i bytes) { return _mm256_dpbusd_epi32(sum, codes, bytes); }
};

#include "attend_segment_simd.h"

}  // namespace

HeadKernel head_vnni() {
    return head_simd<VnniDot>;
}

}  // namespace zipcache::attend_segment
#else
zipcache::attend_segment::HeadKernel zipcache::attend_segment::head_vnni() {
    return nullptr;
}
#endif

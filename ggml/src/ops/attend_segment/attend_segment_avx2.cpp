#include <algorithm>
#include <cmath>
#include <cstring>

#include "attend_segment.h"

#if defined(__AVX2__)
#include "simd/avx2.h"

namespace zipcache::attend_segment {
namespace {

using namespace format;

struct Avx2Dot {
    // sum + for each 32-bit lane the dot product of four unsigned codes (at most 15) with four int8
    static __m256i dot(__m256i sum, __m256i codes, __m256i bytes) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, bytes), _mm256_set1_epi16(1)));
    }
};

#include "attend_segment_simd.h"

}  // namespace

HeadKernel head_avx2() {
    return head_simd<Avx2Dot>;
}

}  // namespace zipcache::attend_segment
#else
zipcache::attend_segment::HeadKernel zipcache::attend_segment::head_avx2() {
    return nullptr;
}
#endif

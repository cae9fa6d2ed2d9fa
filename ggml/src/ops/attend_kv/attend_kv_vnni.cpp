#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "attend_kv.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#include "simd/avx2.h"

namespace zipcache::attend_kv {
namespace {

using namespace format;

struct VnniDot {
    // sum + for each 32-bit lane the dot product of four unsigned codes of Bits bits with four int8
    template <int Bits>
    static __m256i dot(__m256i sum, __m256i codes, __m256i bytes) {
        return _mm256_dpbusd_epi32(sum, codes, bytes);
    }
};

#include "packed_simd.h"

}  // namespace

PackedKernel packed_vnni() {
    return packed_simd<VnniDot>;
}

}  // namespace zipcache::attend_kv
#else
zipcache::attend_kv::PackedKernel zipcache::attend_kv::packed_vnni() {
    return nullptr;
}
#endif

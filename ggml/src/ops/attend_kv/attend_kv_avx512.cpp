#include <algorithm>
#include <cmath>

#include "attend_kv.h"

#ifdef __AVX512F__
#include "simd/avx512.h"

namespace zipcache::attend_kv {
namespace {

#include "attend_kv_simd.h"

}  // namespace

HeadKernel head_avx512() {
    return head_simd<simd::Avx512>;
}

}  // namespace zipcache::attend_kv
#else
zipcache::attend_kv::HeadKernel zipcache::attend_kv::head_avx512() {
    return nullptr;
}
#endif

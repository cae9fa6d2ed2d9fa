#include <algorithm>
#include <cmath>

#include "attend_kv.h"

#ifdef __AVX2__
#include "simd/avx2.h"

namespace zipcache::attend_kv {
namespace {

#include "attend_kv_simd.h"

}  // namespace

HeadKernel head_avx2() {
    return head_simd<simd::Avx2>;
}

}  // namespace zipcache::attend_kv
#else
zipcache::attend_kv::HeadKernel zipcache::attend_kv::head_avx2() {
    return nullptr;
}
#endif

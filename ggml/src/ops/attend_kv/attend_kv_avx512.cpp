#include <algorithm>
#include <cmath>

#include "attend_kv.h"

#ifdef __AVX512F__
#include "simd/avx512.h"

namespace zipcache::attend_kv {
namespace {

#include "window_simd.h"

}  // namespace

WindowKernel window_avx512() {
    return window_simd<simd::Avx512>;
}

}  // namespace zipcache::attend_kv
#else
zipcache::attend_kv::WindowKernel zipcache::attend_kv::window_avx512() {
    return nullptr;
}
#endif

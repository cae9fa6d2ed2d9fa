#include <algorithm>
#include <cmath>

#include "attend_kv.h"
#include "simd/avx512.h"

namespace zipcache::attend_kv {
namespace {

#include "window_simd.h"

}  // namespace

void window_avx512(const WindowTask & task) {
    window_simd<simd::Avx512>(task);
}

}  // namespace zipcache::attend_kv

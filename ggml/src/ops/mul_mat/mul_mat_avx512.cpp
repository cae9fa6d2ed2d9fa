#include "mul_mat.h"

#ifdef __AVX512F__
#include <algorithm>
#include <cstring>
#include <vector>

#include "simd/avx512.h"

namespace zipcache::mul_mat {
namespace {

#include "mul_mat_simd.h"

}  // namespace

Kernel kernel_avx512() {
    return mul_mat_simd<simd::Avx512>;
}

}  // namespace zipcache::mul_mat
#else
zipcache::mul_mat::Kernel zipcache::mul_mat::kernel_avx512() {
    return nullptr;
}
#endif

#include "mul_mat.h"

#ifdef __AVX2__
#include <algorithm>
#include <cstring>
#include <vector>

#include "simd/avx2.h"

namespace zipcache::mul_mat {
namespace {

#include "mul_mat_simd.h"

}  // namespace

Kernel kernel_avx2() {
    return mul_mat_simd<simd::Avx2>;
}

}  // namespace zipcache::mul_mat
#else
zipcache::mul_mat::Kernel zipcache::mul_mat::kernel_avx2() {
    return nullptr;
}
#endif

#include <algorithm>
#include <cstring>
#include <vector>

#include "mul_mat.h"
#include "simd/avx2.h"

namespace zipcache::mul_mat {
namespace {

#include "mul_mat_simd.h"

}  // namespace

void mul_mat_avx2(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row) {
    mul_mat_simd<simd::Avx2>(args, first_row, last_row);
}

}  // namespace zipcache::mul_mat

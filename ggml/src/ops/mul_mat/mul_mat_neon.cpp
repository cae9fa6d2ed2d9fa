#include <algorithm>
#include <cstring>
#include <vector>

#include "mul_mat.h"
#include "simd/neon.h"

namespace zipcache::mul_mat {
namespace {

#include "mul_mat_simd.h"

}  // namespace

void mul_mat_neon(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row) {
    mul_mat_simd<simd::Neon>(args, first_row, last_row);
}

}  // namespace zipcache::mul_mat

#pragma once
#include <cstdint>

#include "ggml-zipcache.h"

// Shared by the variants of mul_mat; the contract is in ggml-zipcache.h.
namespace zipcache::mul_mat {

using Kernel = void (*)(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row);

Kernel kernel_avx2();  // nullptr where not compiled
Kernel kernel_avx512();

}  // namespace zipcache::mul_mat

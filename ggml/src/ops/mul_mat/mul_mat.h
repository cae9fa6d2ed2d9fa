#pragma once
#include <cstdint>

#include "ggml-zipcache.h"

// Shared by the variants of mul_mat; the contract is in ggml-zipcache.h.
namespace zipcache::mul_mat {

using Kernel = void (*)(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row);

// Those that are built for this machine's architecture.
void mul_mat_avx2(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row);
void mul_mat_avx512(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row);
void mul_mat_neon(const ggml_zipcache_mul_mat_args & args, int64_t first_row, int64_t last_row);

}  // namespace zipcache::mul_mat

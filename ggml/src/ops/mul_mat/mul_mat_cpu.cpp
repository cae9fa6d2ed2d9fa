#include "device/cpu_kernels.h"

bool ggml_zipcache_mul_mat_supported(ggml_type type, int64_t k, int64_t n) {
    constexpr int64_t kLeastColumns = 64;  // fewer do not pay for the unpacking of most types
    constexpr int64_t kBlock = 256;        // the largest block of ggml's types
    const auto kernels = zipcache::device::cpu_kernels();
    return kernels.mul_mat_beats_ggml && n >= kLeastColumns && kBlock % ggml_blck_size(type) == 0 &&
           k % ggml_blck_size(type) == 0 && (type == GGML_TYPE_F32 || ggml_get_type_traits(type)->to_float);
}

void ggml_zipcache_mul_mat(const ggml_zipcache_mul_mat_args * args, int64_t first_row, int64_t last_row) {
    const auto kernel = zipcache::device::cpu_kernels().mul_mat;
    kernel ? kernel(*args, first_row, last_row) : ggml_zipcache_mul_mat_ref(args, first_row, last_row);
}

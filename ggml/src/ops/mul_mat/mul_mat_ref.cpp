#include <vector>

#include "mul_mat.h"

void ggml_zipcache_mul_mat_ref(const ggml_zipcache_mul_mat_args * args, int64_t first_row, int64_t last_row) {
    const auto & a = *args;
    const ggml_to_float_t to_float = ggml_get_type_traits(a.type)->to_float;
    std::vector<float> row(a.k);
    for (int64_t m = first_row; m < last_row; ++m) {
        const uint8_t * packed = a.weight + m * a.weight_stride;
        const auto * plain = reinterpret_cast<const float *>(packed);
        a.type == GGML_TYPE_F32 ? row.assign(plain, plain + a.k) : to_float(packed, row.data(), a.k);
        for (int64_t n = 0; n < a.n; ++n) {
            double sum = 0;
            for (int64_t k = 0; k < a.k; ++k) {
                sum += double(row[k]) * a.x[n * a.x_stride + k];
            }
            a.y[n * a.y_stride + m] = float(sum);
        }
    }
}

#include "engine/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/error.h"

namespace zipcache {
namespace {

constexpr ggml_type kTypes[] = {GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,
                                GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K};
constexpr int64_t kTask = 1 << 16;  // elements that a thread takes at a time

// Below it neither a value nor a scale, an f16 in every block, becomes infinite.
float largest(ggml_type type) {
    constexpr float kF16 = 65504.0f, kBf16 = 3.38953139e38f;
    return type == GGML_TYPE_F32 ? std::numeric_limits<float>::max() : type == GGML_TYPE_BF16 ? kBf16 : kF16;
}

void check_values(const RowsF32 & rows, ggml_type type, int64_t first, int64_t n) {
    const float limit = largest(type);
    const float * begin = rows.data + first * rows.n_columns;
    const float * end = begin + n * rows.n_columns;
    bool bad = false;  // without a branch for each value; a NaN is not <= limit
    for (const float * x = begin; x != end; ++x) {
        bad |= !(std::fabs(*x) <= limit);
    }
    if (bad) {
        const float * x = std::find_if(begin, end, [&](float value) { return !(std::fabs(value) <= limit); });
        const int64_t at = x - rows.data;
        throw ModelError(rows.name + " holds " + std::to_string(*x) + " in row " + std::to_string(at / rows.n_columns) +
                         ", column " + std::to_string(at % rows.n_columns) + "; accepted for " + ggml_type_name(type) +
                         ": finite numbers up to " + std::to_string(limit) + " in size");
    }
}

}  // namespace

ggml_type quantizable_type(int number) {
    std::string accepted;
    for (ggml_type type : kTypes) {
        if (type == number) {
            return type;
        }
        accepted += (accepted.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    throw ArgumentError("type " + std::to_string(number) + " cannot be quantized to; accepted: the numbers of " +
                        accepted);
}

size_t quantized_bytes(const RowsF32 & rows, ggml_type type) {
    const int64_t block = ggml_blck_size(type);
    if (rows.n_columns < 1 || rows.n_columns % block != 0) {
        throw ArgumentError(rows.name + " has rows of " + std::to_string(rows.n_columns) + " elements; accepted for " +
                            ggml_type_name(type) + ": multiples of " + std::to_string(block));
    }
    return rows.n_rows * ggml_row_size(type, rows.n_columns);
}

void quantize_rows(const RowsF32 & rows, ggml_type type, Executor & executor, uint8_t * out) {
    quantized_bytes(rows, type);
    const int64_t step = std::max<int64_t>(1, kTask / rows.n_columns);
    const auto n_tasks = static_cast<int>((rows.n_rows + step - 1) / step);
    executor.parallel(n_tasks, [&](int task) {
        const int64_t first = task * step;
        const int64_t n = std::min(step, rows.n_rows - first);
        check_values(rows, type, first, n);
        ggml_quantize_chunk(type, rows.data, out, first * rows.n_columns, n, rows.n_columns, nullptr);
    });
}

}  // namespace zipcache

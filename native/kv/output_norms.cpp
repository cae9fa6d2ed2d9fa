#include "kv/output_norms.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/error.h"

namespace zipcache {

OutputNorms::OutputNorms(std::shared_ptr<const GgufFile> file, int n_layers)
    : file_(std::move(file)), norms_(n_layers) {}

const std::vector<float> & OutputNorms::of(int layer) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<float> & norms = norms_.at(layer);
    if (!norms.empty()) {
        return norms;
    }
    const std::string name = "blk." + std::to_string(layer) + ".attn_output.weight";
    const GgufTensor * weight = file_->find_tensor(name);
    if (!weight) {
        throw ModelError("the model has no " + name);
    }
    const int64_t n = weight->ne[0], n_rows = weight->ne[1];
    const size_t row_bytes = ggml_row_size(weight->type, n);
    const auto to_float = ggml_get_type_traits(weight->type)->to_float;
    std::vector<float> row(n), sums(n);
    for (int64_t i = 0; i < n_rows; ++i) {
        const uint8_t * from = weight->data + i * row_bytes;
        if (to_float) {
            to_float(from, row.data(), n);
        } else {
            std::memcpy(row.data(), from, n * sizeof(float));
        }
        for (int64_t c = 0; c < n; ++c) {
            sums[c] += row[c] * row[c];
        }
    }
    for (float & sum : sums) {  // a channel that nobody reads must not divide by zero
        sum = std::isfinite(sum) ? std::max(sum, 1e-12f) : 1.0f;
    }
    norms = std::move(sums);
    return norms;
}

}  // namespace zipcache

#include <cmath>
#include <limits>
#include <vector>

#include "attend_kv.h"

void ggml_zipcache_attend_kv_ref(const ggml_zipcache_layer * layer, const float * q, int64_t n_tokens, float * out) {
    const auto range = zipcache::attend_kv::visible_tokens(*layer, n_tokens);
    const int dim = layer->head_dim;
    const int group = layer->n_heads / layer->n_kv_heads;
    std::vector<double> weight(n_tokens);
    for (int head = 0; head < layer->n_heads; ++head) {
        const int64_t base = (head / group) * layer->capacity * dim;
        double maximum = -std::numeric_limits<double>::infinity();
        for (int64_t t = range.first; t < range.last; ++t) {
            double dot = 0;
            for (int c = 0; c < dim; ++c) {
                dot += double(q[head * dim + c]) * ggml_fp16_to_fp32(layer->k[base + t * dim + c]);
            }
            weight[t] = dot * layer->scale;
            maximum = std::max(maximum, weight[t]);
        }
        double sum = 0;
        for (int64_t t = range.first; t < range.last; ++t) {
            weight[t] = std::exp(weight[t] - maximum);
            sum += weight[t];
        }
        for (int c = 0; c < dim; ++c) {
            double value = 0;
            for (int64_t t = range.first; t < range.last; ++t) {
                value += weight[t] * ggml_fp16_to_fp32(layer->v[base + t * dim + c]);
            }
            out[head * dim + c] = float(value / sum);
        }
    }
}

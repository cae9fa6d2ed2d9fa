#include <cmath>
#include <vector>

#include "attend_segment.h"

void ggml_zipcache_attend_segment_ref(const ggml_zipcache_segment * segment, const ggml_zipcache_queries * queries,
                                      int64_t first_group, int64_t last_group, float * partial) {
    using namespace zipcache::format;
    const auto & f = *segment->format;
    const int dim = f.head_dim;
    const int64_t first = first_group * kGroup;
    const int64_t n = std::min<int64_t>(last_group * kGroup, segment_tokens(segment->data)) - first;
    if (n <= 0) {
        return;
    }
    std::vector<float> k(f.n_kv_heads * n * dim), v(k.size());
    std::vector<uint8_t> kept(f.n_kv_heads * n);
    dequantize(f, segment->data, first, n, segment->k_divisor, segment->v_divisor, n, k.data(), v.data(), kept.data());
    const int group = queries->n_heads / f.n_kv_heads;
    for (int head = 0; head < queries->n_heads; ++head) {
        const int64_t base = int64_t(head / group) * n;
        float * out = partial + int64_t(head) * (dim + 2);
        const double before = out[dim];
        double maximum = before;
        std::vector<double> weight(n, -INFINITY);
        for (int64_t t = 0; t < n; ++t) {
            double dot = 0;
            for (int c = 0; c < dim; ++c) {
                dot += double(queries->q[head * dim + c]) * k[(base + t) * dim + c];
            }
            weight[t] = kept[base + t] ? dot * queries->scale : -INFINITY;
            maximum = std::max(maximum, weight[t]);
        }
        if (maximum == -INFINITY) {
            continue;
        }
        double sum = out[dim + 1] * std::exp(before - maximum);
        for (double & w : weight) {
            sum += w = std::exp(w - maximum);
        }
        for (int c = 0; c < dim; ++c) {
            double value = out[c] * std::exp(before - maximum);
            for (int64_t t = 0; t < n; ++t) {
                value += weight[t] * v[(base + t) * dim + c];
            }
            out[c] = float(value);
        }
        out[dim] = float(maximum);
        out[dim + 1] = float(sum);
    }
}

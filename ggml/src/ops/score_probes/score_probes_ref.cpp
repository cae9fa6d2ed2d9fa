#include <cmath>
#include <vector>

#include "score_probes.h"

void ggml_zipcache_score_probes_ref(const ggml_zipcache_probes * probes, int kv_head, int64_t first_probe,
                                    int64_t last_probe, float * score, float * square) {
    const auto & p = *probes;
    const int dim = p.head_dim, group = p.n_heads / p.n_kv_heads;
    std::vector<double> total(p.n_tokens), squares(p.n_tokens), weight(p.n_tokens);
    for (int64_t probe = first_probe; probe < last_probe; ++probe) {
        const auto seen = zipcache::score_probes::seen_by(p, probe);
        for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
            double maximum = -INFINITY, sum = 0;
            for (int64_t t = seen.first; t < seen.last; ++t) {
                double dot = 0;
                for (int c = 0; c < dim; ++c) {
                    dot += double(p.q[(probe * p.n_heads + head) * dim + c]) *
                           ggml_fp16_to_fp32(p.k[(kv_head * p.k_stride + t) * dim + c]);
                }
                weight[t] = dot * p.scale;
                maximum = std::max(maximum, weight[t]);
            }
            for (int64_t t = seen.first; t < seen.last; ++t) {
                sum += weight[t] = std::exp(weight[t] - maximum);
            }
            for (int64_t t = seen.first; t < seen.last; ++t) {
                total[t] += weight[t] / sum;
                squares[t] += weight[t] / sum * (weight[t] / sum);
            }
        }
    }
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        score[t] += float(total[t]);
        square[t] += float(squares[t]);
    }
}

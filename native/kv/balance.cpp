#include "kv/balance.h"

#include <algorithm>
#include <cmath>

namespace zipcache {
namespace {

constexpr float kLeast = 1e-5f;    // of a spread or a size: a dead channel divides by something
constexpr int kSampledProbes = 6;  // whose attention is looked at row by row
constexpr int64_t kGroupTokens = 64;

// One head's rows as f32.
std::vector<float> floats(const uint16_t * rows, int head, const Rows & at, int64_t first, int64_t n, int dim) {
    std::vector<float> x(n * dim);
    ggml_fp16_to_fp32_row(rows + (head * at.stride + first) * dim, x.data(), n * dim);
    return x;
}

// Standard deviation of each channel around the mean of its own group of tokens.
std::vector<float> spread(const std::vector<float> & x, int64_t n, int dim, int64_t group) {
    std::vector<double> total(dim);
    for (int64_t first = 0; first < n; first += group) {
        const int64_t last = std::min(n, first + group);
        std::vector<double> sum(dim), squares(dim);
        for (int64_t t = first; t < last; ++t) {
            for (int c = 0; c < dim; ++c) {
                const double value = x[t * dim + c];
                sum[c] += value;
                squares[c] += value * value;
            }
        }
        for (int c = 0; c < dim; ++c) {
            total[c] += std::max(0.0, squares[c] - sum[c] * sum[c] / double(last - first));
        }
    }
    std::vector<float> result(dim);
    for (int c = 0; c < dim; ++c) {
        result[c] = std::max(kLeast, float(std::sqrt(total[c] / double(n))));
    }
    return result;
}

// Largest magnitude of each channel.
std::vector<float> largest(const std::vector<float> & x, int dim) {
    std::vector<float> most(dim, kLeast);
    for (size_t i = 0; i < x.size(); ++i) {
        most[i % dim] = std::max(most[i % dim], std::fabs(x[i]));
    }
    return most;
}

// Root mean square of each channel of the probe queries of a KV head.
std::vector<float> query_size(const Probes & probes, int head, const HParams & h) {
    const int dim = h.head_dim, group = h.n_heads / h.n_kv_heads;
    std::vector<double> squares(dim);
    for (int64_t i = 0; i < probes.size(); ++i) {
        for (int r = head * group; r < (head + 1) * group; ++r) {
            for (int c = 0; c < dim; ++c) {
                const double q = probes.q[(i * h.n_heads + r) * dim + c];
                squares[c] += q * q;
            }
        }
    }
    std::vector<float> result(dim, 1.0f);
    for (int c = 0; c < dim && probes.size() > 0; ++c) {
        result[c] = std::max(kLeast, float(std::sqrt(squares[c] / double(probes.size() * group))));
    }
    return result;
}

// Attention probabilities of one probe's head over the rows it sees, [rows.n]; zeros elsewhere.
std::vector<float> probabilities(const Rows & rows, const std::vector<float> & k, const Probes & probes, int64_t probe,
                                 int query_head, const HParams & h) {
    const int dim = h.head_dim;
    const int64_t last = std::min(rows.n, probes.row[probe] + 1);
    const int64_t first = rows.sliding_window > 0 ? std::max<int64_t>(0, last - rows.sliding_window) : 0;
    const float * q = &probes.q[(probe * h.n_heads + query_head) * dim];
    std::vector<float> p(rows.n);
    float top = -INFINITY, sum = 0;
    for (int64_t t = first; t < last; ++t) {
        float dot = 0;
        for (int c = 0; c < dim; ++c) {
            dot += q[c] * k[t * dim + c];
        }
        p[t] = dot * h.attention_scale;
        top = std::max(top, p[t]);
    }
    for (int64_t t = first; t < last; ++t) {
        sum += p[t] = std::exp(p[t] - top);
    }
    for (int64_t t = first; t < last; ++t) {
        p[t] /= sum;
    }
    return p;
}

// Mean over rows and probes of P^2 |W_o (v - o)|^2 (diagonal of W_o): what a unit of noise in a logit costs.
double logit_sensitivity(const Rows & rows, int64_t first, int64_t n, int head, const Probes & probes,
                         const std::vector<float> & norms, const HParams & h) {
    const int dim = h.head_dim, group = h.n_heads / h.n_kv_heads;
    const auto k = floats(rows.k, head, rows, 0, rows.n, dim), v = floats(rows.v, head, rows, 0, rows.n, dim);
    const auto n_sampled = static_cast<int>(std::min<int64_t>(kSampledProbes, probes.size()));
    double total = 0;
    std::vector<float> out(dim);
    for (int sample = 0; sample < n_sampled; ++sample) {
        const int64_t probe = probes.size() * (2 * sample + 1) / (2 * n_sampled);
        for (int r = head * group; r < (head + 1) * group; ++r) {
            const auto p = probabilities(rows, k, probes, probe, r, h);
            std::fill(out.begin(), out.end(), 0.0f);
            for (int64_t t = 0; t < rows.n; ++t) {
                for (int c = 0; p[t] > 0 && c < dim; ++c) {
                    out[c] += p[t] * v[t * dim + c];
                }
            }
            const float * norm = &norms[size_t(r) * dim];
            for (int64_t t = first; t < first + n; ++t) {
                float distance = 0;
                for (int c = 0; p[t] > 1e-6f && c < dim; ++c) {
                    const float d = v[t * dim + c] - out[c];
                    distance += norm[c] * d * d;
                }
                total += double(p[t]) * p[t] * distance;
            }
        }
    }
    return n_sampled > 0 ? total / (double(n_sampled) * double(n)) : 1.0;
}

void balance_head(const Rows & rows, int64_t first, int64_t n, int head, const Probes & probes, const Scores & scores,
                  const std::vector<float> & norms, const HParams & h, Balance & balance) {
    const int dim = h.head_dim, group = h.n_heads / h.n_kv_heads;
    const auto k_spread = spread(floats(rows.k, head, rows, first, n, dim), n, dim, kGroupTokens);
    const auto v_spread = spread(floats(rows.v, head, rows, first, n, dim), n, dim, n);
    const auto q_size = query_size(probes, head, h);
    double logit_noise = 0, value_noise = 0;
    for (int c = 0; c < dim; ++c) {
        float read = 0;
        for (int r = head * group; r < (head + 1) * group; ++r) {
            read += norms[size_t(r) * dim + c];
        }
        float & k = balance.k_divisor[head * dim + c] = std::sqrt(k_spread[c] / q_size[c]);
        float & v = balance.v_divisor[head * dim + c] = std::sqrt(v_spread[c] / std::sqrt(read));
        logit_noise += double(q_size[c]) * q_size[c] * k * k / dim;
        value_noise += double(read) * v * v;
    }
    double squares = 0;
    for (int64_t t = 0; t < n; ++t) {
        squares += scores.square[head * n + t] / std::max(1.0f, scores.seen[t]);
    }
    constexpr double kKeyWeight = 4;  // found in simulation: errors of keys act together, those of values cancel
    const double scale = double(h.attention_scale) * h.attention_scale;
    balance.k_weight[head] =
        float(kKeyWeight * logit_sensitivity(rows, first, n, head, probes, norms, h) * logit_noise * scale * dim);
    balance.v_weight[head] = float(squares / double(n) / group * value_noise);
}

}  // namespace

Balance find_balance(const Rows & rows, int64_t first, int64_t n, const Probes & probes, const Scores & scores,
                     const std::vector<float> & output_norms, const HParams & h, const Parallel & parallel) {
    Balance balance;
    balance.k_divisor.resize(size_t(h.n_kv_heads) * h.head_dim);
    balance.v_divisor.resize(balance.k_divisor.size());
    balance.k_weight.resize(h.n_kv_heads);
    balance.v_weight.resize(h.n_kv_heads);
    parallel(h.n_kv_heads,
             [&](int head) { balance_head(rows, first, n, head, probes, scores, output_norms, h, balance); });
    return balance;
}

Balance find_peaks(const Rows & rows, int64_t first, int64_t n, const Probes & probes, const HParams & h) {
    const int dim = h.head_dim, group = h.n_heads / h.n_kv_heads;
    Balance balance;
    for (int head = 0; head < h.n_kv_heads; ++head) {
        const auto k = largest(floats(rows.k, head, rows, first, n, dim), dim);
        std::vector<float> queries;
        for (int64_t i = 0; i < probes.size(); ++i) {
            const float * q = probes.q + (i * h.n_heads + int64_t(head) * group) * dim;
            queries.insert(queries.end(), q, q + int64_t(group) * dim);
        }
        const auto q = queries.empty() ? std::vector<float>(dim, 1.0f) : largest(queries, dim);
        for (int c = 0; c < dim; ++c) {
            balance.k_divisor.push_back(std::sqrt(k[c] / q[c]));
        }
    }
    return balance;
}

std::vector<float> find_normalizer(const Rows & rows, int64_t first, int64_t n, const HParams & h) {
    const int dim = h.head_dim;
    std::vector<float> normalizer;
    normalizer.reserve(size_t(h.n_kv_heads) * dim);
    for (int head = 0; head < h.n_kv_heads; ++head) {
        for (float most : largest(floats(rows.v, head, rows, first, n, dim), dim)) {
            normalizer.push_back(std::sqrt(most));
        }
    }
    return normalizer;
}

}  // namespace zipcache

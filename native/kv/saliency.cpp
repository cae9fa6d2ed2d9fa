#include "kv/saliency.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace zipcache {
namespace {

constexpr int kParts = 4;  // of the probes, for each KV head: work for the threads

// All keys that the probes see are at hand.
void score_whole(const Rows & rows, const Probes & probes, const HParams & h, int head, int part, float * score,
                 float * square) {
    const ggml_zipcache_probes args = {h.n_heads, h.n_kv_heads, h.head_dim, h.attention_scale, rows.sliding_window,
                                       rows.n,    rows.stride,  rows.k,     probes.row.data(), probes.q};
    ggml_zipcache_score_probes(&args, head, probes.size() * part / kParts, probes.size() * (part + 1) / kParts, score,
                               square);
}

// The probes' log-sum-exp is known: they saw more than what is at hand.
void score_known(const Rows & rows, const Probes & probes, const HParams & h, int head, int part, float * score,
                 float * square) {
    const int dim = h.head_dim, group = h.n_heads / h.n_kv_heads;
    const int64_t first = probes.size() * part / kParts, last = probes.size() * (part + 1) / kParts;
    const int64_t n_queries = (last - first) * group;
    std::vector<float> q(dim * n_queries);  // [head_dim, n_queries], so that their dot products run side by side
    for (int64_t j = 0; j < n_queries; ++j) {
        const float * from = &probes.q[((first + j / group) * h.n_heads + head * group + j % group) * dim];
        for (int c = 0; c < dim; ++c) {
            q[c * n_queries + j] = from[c];
        }
    }
    std::vector<float> key(dim), dots(n_queries);
    for (int64_t t = 0; t < rows.n; ++t) {
        ggml_fp16_to_fp32_row(rows.k + (head * rows.stride + t) * dim, key.data(), dim);
        std::fill(dots.begin(), dots.end(), 0.0f);
        for (int c = 0; c < dim; ++c) {
            const float * row = q.data() + c * n_queries;
            for (int64_t j = 0; j < n_queries; ++j) {
                dots[j] += row[j] * key[c];
            }
        }
        for (int64_t i = first; i < last; ++i) {
            const bool hidden = rows.sliding_window > 0 && t <= probes.row[i] - rows.sliding_window;
            for (int r = 0; t <= probes.row[i] && !hidden && r < group; ++r) {
                const float dot = dots[(i - first) * group + r];
                const float p = std::exp(dot * h.attention_scale - probes.log_sum[i * h.n_heads + head * group + r]);
                score[t] += p;
                square[t] += p * p;
            }
        }
    }
}

// The largest of each ranking's scores up to `reach` away.
std::vector<float> pooled(const std::vector<float> & scores, int64_t n, int64_t reach) {
    std::vector<float> largest(scores.size());
    for (int64_t i = 0; i < int64_t(scores.size()); ++i) {
        const int64_t first = i / n * n, last = first + n;
        largest[i] = *std::max_element(scores.begin() + std::max(first, i - reach),
                                       scores.begin() + std::min(last, i + reach + 1));
    }
    return largest;
}

}  // namespace

std::vector<float> count_seen(const Rows & rows, int64_t first, int64_t n, const Probes & probes) {
    std::vector<float> seen(n);
    for (int64_t row : probes.row) {
        const int64_t from = rows.sliding_window > 0 ? std::max<int64_t>(0, row + 1 - rows.sliding_window) : 0;
        for (int64_t t = std::max(from, first); t < std::min(row + 1, first + n); ++t) {
            ++seen[t - first];
        }
    }
    return seen;
}

Scores score_rows(const Rows & rows, int64_t first, int64_t n, const Probes & probes, const HParams & h,
                  const Parallel & parallel) {
    Scores scores;
    scores.n = n;
    scores.score.assign(h.n_kv_heads * n, 0.0f);
    scores.square.assign(h.n_kv_heads * n, 0.0f);
    scores.seen = count_seen(rows, first, n, probes);
    std::vector<std::vector<float>> parts(size_t(h.n_kv_heads) * kParts, std::vector<float>(2 * rows.n));
    parallel(static_cast<int>(parts.size()), [&](int task) {
        float * score = parts[task].data();
        (probes.log_sum.empty() ? score_whole : score_known)(rows, probes, h, task / kParts, task % kParts, score,
                                                             score + rows.n);
    });
    for (size_t task = 0; task < parts.size(); ++task) {
        for (int64_t t = 0; t < n; ++t) {
            scores.score[task / kParts * n + t] += parts[task][first + t];
            scores.square[task / kParts * n + t] += parts[task][rows.n + first + t];
        }
    }
    return scores;
}

std::vector<float> saliency_of(const Policy & policy, const Scores & scores, const HParams & h, uint64_t seed) {
    const int64_t n = scores.n;
    const int n_ranks = policy.options.per_head ? h.n_kv_heads : 1;
    std::vector<float> saliency(n_ranks * n);
    std::mt19937_64 random(policy.options.seed ^ (seed * 0xD1B54A32D192ED03ull));
    for (int64_t i = 0; i < n_ranks * n; ++i) {
        const int64_t t = i % n;
        switch (policy.saliency) {
            case Saliency::recent: saliency[i] = float(t); break;
            case Saliency::random: saliency[i] = float(random() >> 40); break;
            default:
                for (int head = n_ranks > 1 ? int(i / n) : 0; head < (n_ranks > 1 ? int(i / n) + 1 : h.n_kv_heads);
                     ++head) {
                    saliency[i] += scores.score[head * n + t];
                }
                if (policy.saliency == Saliency::normalized) {
                    saliency[i] /= std::max(1.0f, scores.seen[t]);
                }
                if (!(saliency[i] >= 0)) {  // a broken model's NaN must not reach a sort
                    saliency[i] = 0;
                }
        }
    }
    return policy.pool > 1 ? pooled(saliency, n, policy.pool / 2) : saliency;
}

std::vector<uint8_t> most_salient(const float * saliency, int64_t n, int64_t n_salient, int64_t n_always) {
    const int64_t n_others = std::max<int64_t>(0, n - n_always);
    std::vector<uint8_t> chosen(n, 1);
    std::fill(chosen.begin(), chosen.begin() + n_others, uint8_t(0));
    std::vector<int64_t> order(n_others);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int64_t a, int64_t b) { return saliency[a] > saliency[b] || (saliency[a] == saliency[b] && a < b); });
    for (int64_t i = 0; i < std::min(n_salient, n_others); ++i) {
        chosen[order[i]] = 1;
    }
    return chosen;
}

}  // namespace zipcache

#include "kv/compress.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kv/water_fill.h"

namespace zipcache {
namespace {

// Tier 0 for the most salient `ratio` of each ranking, tier 1 for the rest; the older one first among equals.
std::vector<uint8_t> top_ratio(const std::vector<float> & saliency, int64_t n, double ratio) {
    std::vector<uint8_t> tiers(saliency.size(), 1);
    const int64_t n_salient = std::llround(ratio * double(n));
    for (size_t rank = 0; rank < saliency.size(); rank += n) {
        std::vector<int64_t> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            const float x = saliency[rank + a], y = saliency[rank + b];
            return x > y || (x == y && a < b);
        });
        for (int64_t i = 0; i < n_salient; ++i) {
            tiers[rank + order[i]] = 0;
        }
    }
    return tiers;
}

struct Range {
    float low = INFINITY, high = -INFINITY;
    void take(float x) {
        low = std::min(low, x);
        high = std::max(high, x);
    }
    float width() const { return high > low ? high - low : 0; }
};

// Squared ranges of the stored rows of one head: of keys, the mean over channels of that of the 64 tokens around; of
// values, each token's own.
void squared_ranges(const Rows & rows, int64_t first, int64_t n, int head, const Balance & balance, int dim,
                    float * k_out, float * v_out) {
    constexpr int64_t kGroupTokens = 64;
    std::vector<float> x(dim);
    auto load = [&](const uint16_t * from, const std::vector<float> & divisor, int64_t t) {
        ggml_fp16_to_fp32_row(from + (head * rows.stride + t) * dim, x.data(), dim);
        for (int c = 0; c < dim; ++c) {
            x[c] /= divisor[head * dim + c];
        }
        ggml_zipcache_walsh_hadamard(x.data(), dim);
    };
    for (int64_t group = 0; group < n; group += kGroupTokens) {
        const int64_t last = std::min(n, group + kGroupTokens);
        std::vector<Range> channels(dim);
        for (int64_t t = group; t < last; ++t) {
            load(rows.k, balance.k_divisor, first + t);
            for (int c = 0; c < dim; ++c) {
                channels[c].take(x[c]);
            }
            load(rows.v, balance.v_divisor, first + t);
            Range token;
            for (int c = 0; c < dim; ++c) {
                token.take(x[c]);
            }
            v_out[t] = token.width() * token.width();
        }
        float sum = 0;
        for (const Range & range : channels) {
            sum += range.width() * range.width();
        }
        std::fill(k_out + group, k_out + last, sum / float(dim));
    }
}

}  // namespace

const float * Segment::keys_divisor() const {
    return balance ? balance->k_divisor.data() : k_divisor.empty() ? nullptr : k_divisor.data();
}

const float * Segment::values_divisor() const {
    return balance ? balance->v_divisor.data() : v_divisor.empty() ? nullptr : v_divisor.data();
}

size_t Segment::bytes() const {
    return sizeof(Segment) + page_bytes(data.capacity()) +
           sizeof(float) * (k_divisor.capacity() + v_divisor.capacity()) + device_data.size() + device_divisors.size();
}

std::vector<uint8_t> Compressor::choose_tiers(const ggml_zipcache_format & format, const Rows & rows, int64_t first,
                                              int64_t n, const Scores & scores, const Balance * balance, uint64_t seed,
                                              const Parallel & parallel) const {
    if (policy_->ranking == Ranking::none) {
        return std::vector<uint8_t>(n);
    }
    auto saliency = saliency_of(*policy_, scores, h_, seed);
    if (policy_->ranking == Ranking::top_ratio) {
        return top_ratio(saliency, n, policy_->options.ratio);
    }
    const double mean = std::accumulate(saliency.begin(), saliency.end(), 0.0) / double(saliency.size());
    const auto floor = float(0.01 * mean + 1e-30);  // so that nothing is worthless
    Costs costs = {n, std::vector<float>(h_.n_kv_heads * n), std::vector<float>(h_.n_kv_heads * n)};
    parallel(h_.n_kv_heads, [&](int head) {
        float * k = &costs.k[head * n];
        float * v = &costs.v[head * n];
        squared_ranges(rows, first, n, head, *balance, h_.head_dim, k, v);
        const float * p = &saliency[policy_->options.per_head ? head * n : 0];
        for (int64_t t = 0; t < n; ++t) {
            const float share = std::max(p[t], floor) / float(mean + 1e-30);
            k[t] *= share * balance->k_weight[head];
            v[t] *= share * balance->v_weight[head];
        }
    });
    return water_fill(format, costs, policy_->budget);
}

std::shared_ptr<Segment> Compressor::compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                              const Probes & probes, std::shared_ptr<const Balance> balance,
                                              const Parallel & parallel) const {
    auto segment = std::make_shared<Segment>();
    segment->policy = policy_;
    segment->format = &policy_->format_for(n);
    segment->n_tokens = n;
    const ggml_zipcache_format & f = *segment->format;
    Scores scores;
    if (policy_->ranking != Ranking::none) {
        scores = score_rows(rows, first, n, probes, h_, parallel);
    }
    if (policy_->k_divisor == Divisor::balance) {
        segment->balance = balance ? std::move(balance)
                                   : std::make_shared<Balance>(
                                         find_balance(rows, first, n, probes, scores, norms_.of(layer), h_, parallel));
    }
    if (policy_->v_divisor == Divisor::normalizer) {
        segment->v_divisor = find_normalizer(rows, first, n, h_);
    }
    const auto tiers =
        choose_tiers(f, rows, first, n, scores, segment->balance.get(), compression_seed(layer, n), parallel);
    const ggml_zipcache_rows args = {n,
                                     rows.stride,
                                     rows.k + first * h_.head_dim,
                                     rows.v + first * h_.head_dim,
                                     segment->keys_divisor(),
                                     segment->values_divisor(),
                                     tiers.data()};
    segment->data.resize(ggml_zipcache_segment_bytes(&f, n, tiers.data()));
    ggml_zipcache_quantize_kv_begin(&f, &args, segment->data.data());
    parallel(h_.n_kv_heads, [&](int head) { ggml_zipcache_quantize_kv_head(&f, &args, head, segment->data.data()); });
    return segment;
}

}  // namespace zipcache

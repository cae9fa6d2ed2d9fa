#include "kv/compress.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kv/water_fill.h"

namespace zipcache {
namespace {

// Tier 0 for the newest n_always of each ranking of n and the n_salient most salient others, tier 1 for the rest.
std::vector<uint8_t> top_ratio(const std::vector<float> & saliency, int64_t n, int64_t n_salient, int64_t n_always) {
    std::vector<uint8_t> tiers;
    for (size_t rank = 0; rank < saliency.size(); rank += n) {
        const auto chosen = most_salient(&saliency[rank], n, n_salient, n_always);
        std::transform(chosen.begin(), chosen.end(), std::back_inserter(tiers),
                       [](uint8_t is_chosen) { return uint8_t(is_chosen ? 0 : 1); });
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
    const auto & divisor = balance ? balance->k_divisor : k_divisor;
    return divisor.empty() ? nullptr : divisor.data();
}

const float * Segment::values_divisor() const {
    const auto & divisor = balance ? balance->v_divisor : v_divisor;
    return divisor.empty() ? nullptr : divisor.data();
}

size_t Segment::bytes() const {
    return sizeof(Segment) + page_bytes(data.capacity()) + page_bytes(correction.capacity()) +
           sizeof(float) * (k_divisor.capacity() + v_divisor.capacity() + score.capacity()) + device_data.size() +
           device_divisors.size();
}

std::vector<uint8_t> Compressor::choose_tiers(const ggml_zipcache_format & format, const Rows & rows, int64_t first,
                                              int64_t n, const Scores & scores, const Balance * balance, uint64_t seed,
                                              const Parallel & parallel) const {
    if (scores.n == 0) {
        return std::vector<uint8_t>(n);
    }
    auto saliency = saliency_of(*policy_, scores, h_, seed);
    if (policy_->ranking == Ranking::top_ratio) {
        return top_ratio(saliency, n, policy_->n_salient(n), policy_->n_newest(n));
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

std::shared_ptr<Segment> Compressor::begin_segment(int64_t n_tokens) const {
    auto segment = std::make_shared<Segment>();
    segment->policy = policy_;
    segment->format = &policy_->format_for(n_tokens);
    segment->n_tokens = n_tokens;
    return segment;
}

void Compressor::quantize(Segment & segment, const Rows & rows, int64_t first, const uint8_t * tier,
                          const uint32_t * row, const Parallel & parallel) const {
    const ggml_zipcache_format & f = *segment.format;
    const ggml_zipcache_rows args = {segment.n_tokens,
                                     rows.stride,
                                     rows.k + first * h_.head_dim,
                                     rows.v + first * h_.head_dim,
                                     segment.keys_divisor(),
                                     segment.values_divisor(),
                                     tier,
                                     row};
    segment.data.resize(ggml_zipcache_segment_bytes(&f, segment.n_tokens, tier));
    ggml_zipcache_quantize_kv_begin(&f, &args, segment.data.data());
    parallel(h_.n_kv_heads, [&](int head) { ggml_zipcache_quantize_kv_head(&f, &args, head, segment.data.data()); });
}

// The codes are of rows whose outliers are drawn in; the correction brings them back.
void Compressor::quantize_corrected(Segment & segment, const Rows & rows, int64_t first, const uint8_t * tier,
                                    const Parallel & parallel) const {
    const ggml_zipcache_format & f = *segment.format;
    const int64_t n = segment.n_tokens, offset = first * h_.head_dim;
    const size_t size = size_t(h_.n_kv_heads) * n * h_.head_dim;
    const auto share = static_cast<float>(policy_->options.outliers);
    std::vector<uint16_t> k(size), v(size);
    std::vector<uint8_t> k_mark(size), v_mark(size);
    const ggml_zipcache_rows args = {n, rows.stride, rows.k + offset, rows.v + offset, nullptr, nullptr, tier, nullptr};
    ggml_zipcache_mark_outliers(&f, &args, share, k.data(), v.data(), k_mark.data(), v_mark.data());
    quantize(segment, {n, n, k.data(), v.data(), 0}, 0, tier, nullptr, parallel);
    const int rank = policy_->rank(n);
    segment.correction.resize(ggml_zipcache_correction_bytes(&f, n, rank, share));
    uint8_t * to = segment.correction.data();
    ggml_zipcache_correct_kv_begin(&f, n, rank, k_mark.data(), v_mark.data(), to);
    parallel(h_.n_kv_heads, [&](int head) {
        ggml_zipcache_correct_kv_head(&f, &args, segment.data.data(), k_mark.data(), v_mark.data(), head, to);
    });
}

std::shared_ptr<Segment> Compressor::keep(const Rows & rows, Kept kept, const Parallel & parallel) const {
    auto segment = begin_segment(static_cast<int64_t>(kept.tier.size()));
    quantize(*segment, rows, 0, kept.tier.data(), kept.row.data(), parallel);
    segment->score = std::move(kept.score);
    return segment;
}

Compression Compressor::plan(int layer, const Rows & rows, int64_t first, int64_t n, const Probes & probes,
                             std::shared_ptr<const Balance> balance, const std::function<Scores()> & score,
                             const Parallel & parallel) const {
    Compression c;
    c.segment = begin_segment(n);
    Scores scores;
    const bool decoded = policy_->prompts_only && probes.size() == 0;
    if (policy_->ranking != Ranking::none && !decoded) {
        scores = score();
    }
    if (!balance && policy_->balances()) {
        c.learned = std::make_shared<Balance>(
            policy_->k_divisor == Divisor::peaks
                ? find_peaks(rows, first, n, probes, h_)
                : find_balance(rows, first, n, probes, scores, norms_.of(layer), h_, parallel));
    }
    if (policy_->balances()) {
        c.segment->balance = c.learned ? c.learned : std::move(balance);
    }
    if (policy_->v_divisor == Divisor::normalizer) {
        c.segment->v_divisor = find_normalizer(rows, first, n, h_);
    }
    c.tier = choose_tiers(*c.segment->format, rows, first, n, scores, c.segment->balance.get(),
                          compression_seed(layer, n), parallel);
    return c;
}

std::shared_ptr<Segment> Compressor::compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                              const Probes & probes, std::shared_ptr<const Balance> balance,
                                              const Parallel & parallel) const {
    auto score = [&] { return score_rows(rows, first, n, probes, h_, parallel); };
    Compression c = plan(layer, rows, first, n, probes, std::move(balance), score, parallel);
    if (policy_->corrects) {
        quantize_corrected(*c.segment, rows, first, c.tier.data(), parallel);
    } else {
        quantize(*c.segment, rows, first, c.tier.data(), nullptr, parallel);
    }
    return c.segment;
}

}  // namespace zipcache

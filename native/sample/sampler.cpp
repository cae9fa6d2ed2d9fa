#include "sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "common/error.h"

namespace zipcache {
namespace {

void check(bool ok, const char * name, double value, const char * accepted) {
    if (!ok) {
        throw ArgumentError(std::string(name) + " is " + std::to_string(value) + "; accepted: " + accepted);
    }
}

void check_options(const SamplerOptions & o, int32_t n_vocab) {
    check(std::isfinite(o.temperature) && o.temperature >= 0, "temperature", o.temperature, "a finite number >= 0");
    check(o.top_k >= 0, "top_k", o.top_k, "0 or more");
    check(o.top_p > 0 && o.top_p <= 1, "top_p", o.top_p, "above 0, up to 1");
    check(o.min_p >= 0 && o.min_p <= 1, "min_p", o.min_p, "0 to 1");
    check(std::isfinite(o.repetition_penalty) && o.repetition_penalty > 0, "repetition_penalty", o.repetition_penalty,
          "a finite number > 0");
    check(std::isfinite(o.presence_penalty), "presence_penalty", o.presence_penalty, "a finite number");
    check(std::isfinite(o.frequency_penalty), "frequency_penalty", o.frequency_penalty, "a finite number");
    check(o.penalty_last_n >= -1, "penalty_last_n", o.penalty_last_n, "-1 or more");
    for (const auto & [token, bias] : o.logit_bias) {
        check(token >= 0 && token < n_vocab, "a token of logit_bias", token, "a token id of the model");
        check(!std::isnan(bias) && bias != INFINITY, "a bias of logit_bias", bias, "a finite number or -inf");
    }
}

uint64_t rotate_left(uint64_t x, int n) {
    return (x << n) | (x >> (64 - n));
}

// splitmix64, the usual way to fill xoshiro's state from one number (Blackman and Vigna, 2018)
uint64_t next_seed(uint64_t & state) {
    uint64_t z = (state += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

// xoshiro256++; uniform in [0, 1)
double uniform(uint64_t s[4]) {
    const uint64_t result = rotate_left(s[0] + s[3], 23) + s[0];
    const uint64_t t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return double(result >> 11) * 0x1.0p-53;
}

// Natural log of softmax(logits) at one token; NaN counts as forbidden.
float log_probability(const float * logits, int32_t n, int32_t token) {
    float top = -INFINITY;
    for (int32_t i = 0; i < n; ++i) {
        top = logits[i] > top ? logits[i] : top;
    }
    double sum = 0;
    for (int32_t i = 0; i < n; ++i) {
        sum += std::isnan(logits[i]) ? 0.0 : std::exp(double(logits[i]) - top);
    }
    return static_cast<float>(double(logits[token]) - top - std::log(sum));
}

}  // namespace

Sampler::Sampler(SamplerOptions options, int32_t n_vocab) : options_(std::move(options)), n_vocab_(n_vocab) {
    check_options(options_, n_vocab_);
    uint64_t seed = options_.seed;
    for (uint64_t & word : random_state_) {
        word = next_seed(seed);
    }
}

void Sampler::accept(int32_t token) {
    if (options_.penalty_last_n == 0) {
        return;
    }
    recent_.push_back(token);
    // dropping in bulk keeps the cost of a long conversation linear
    const size_t keep = options_.penalty_last_n < 0 ? recent_.size() : size_t(options_.penalty_last_n);
    if (recent_.size() > 2 * keep + 64) {
        recent_.erase(recent_.begin(), recent_.end() - std::ptrdiff_t(keep));
    }
}

void Sampler::collect(const float * logits) {
    candidates_.resize(size_t(n_vocab_));
    for (int32_t i = 0; i < n_vocab_; ++i) {
        candidates_[size_t(i)] = {std::isnan(logits[i]) ? -INFINITY : logits[i], i};
    }
    for (const auto & [token, bias] : options_.logit_bias) {
        candidates_[size_t(token)].logit += bias;
    }
}

void Sampler::penalize() {
    const auto & o = options_;
    if (o.repetition_penalty == 1.0f && o.presence_penalty == 0.0f && o.frequency_penalty == 0.0f) {
        return;
    }
    const size_t n = o.penalty_last_n < 0 ? recent_.size() : std::min(recent_.size(), size_t(o.penalty_last_n));
    std::vector<int32_t> seen(recent_.end() - std::ptrdiff_t(n), recent_.end());
    std::sort(seen.begin(), seen.end());
    for (auto it = seen.begin(); it != seen.end();) {
        const auto end = std::upper_bound(it, seen.end(), *it);
        float & logit = candidates_[size_t(*it)].logit;
        logit = logit > 0 ? logit / o.repetition_penalty : logit * o.repetition_penalty;
        logit -= o.presence_penalty + o.frequency_penalty * float(end - it);
        it = end;
    }
}

// Most probable first; the lower id first among equals.
void Sampler::keep_best(size_t n) {
    auto better = [](const Candidate & a, const Candidate & b) {
        return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
    };
    n = std::min(n, candidates_.size());
    std::partial_sort(candidates_.begin(), candidates_.begin() + std::ptrdiff_t(n), candidates_.end(), better);
    candidates_.resize(n);
}

void Sampler::truncate_by_probability() {
    const float top = candidates_.front().logit;
    std::vector<double> weight;
    double total = 0;
    for (const Candidate & c : candidates_) {
        weight.push_back(std::exp(double(c.logit) - top));
        total += weight.back();
    }
    size_t n = 0;
    double mass = 0;
    while (n < weight.size() && (n == 0 || mass < options_.top_p * total) && weight[n] > 0) {
        mass += weight[n++];
    }
    while (n > 1 && weight[n - 1] < options_.min_p) {  // the best one's weight is 1
        --n;
    }
    candidates_.resize(n);
}

int32_t Sampler::draw() {
    const float top = candidates_.front().logit;
    std::vector<double> sums;
    double total = 0;
    for (const Candidate & c : candidates_) {
        total += std::exp((double(c.logit) - top) / options_.temperature);
        sums.push_back(total);
    }
    const double mark = uniform(random_state_) * total;
    const auto found = std::upper_bound(sums.begin(), sums.end(), mark);
    const size_t index = std::min(size_t(found - sums.begin()), candidates_.size() - 1);
    return candidates_[index].token;
}

Sample Sampler::sample(const float * logits) {
    collect(logits);
    penalize();
    const bool greedy = options_.temperature == 0;
    keep_best(greedy ? 1 : options_.top_k > 0 ? size_t(options_.top_k) : candidates_.size());
    const float top = candidates_.front().logit;
    if (!std::isfinite(top)) {
        throw ModelError("no token can be chosen: every logit is NaN, infinite or forbidden");
    }
    if (!greedy) {
        truncate_by_probability();
    }
    const int32_t token = greedy ? candidates_.front().token : draw();
    return {token, log_probability(logits, n_vocab_, token)};
}

}  // namespace zipcache

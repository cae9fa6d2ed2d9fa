#include <algorithm>
#include <cmath>
#include <limits>

#include "check.h"
#include "common/error.h"
#include "sample/sampler.h"

using namespace zipcache;

namespace {

SamplerOptions plain() {  // nothing but temperature 1
    SamplerOptions o;
    o.temperature = 1;
    o.top_k = 0;
    o.top_p = 1;
    o.min_p = 0;
    return o;
}

std::vector<int> counts(const SamplerOptions & options, const std::vector<float> & logits, int n) {
    Sampler sampler(options, int32_t(logits.size()));
    std::vector<int> seen(logits.size());
    for (int i = 0; i < n; ++i) {
        ++seen[size_t(sampler.sample(logits.data()).token)];
    }
    return seen;
}

const std::vector<float> kLogits = {0.0f, 2.0f, 1.0f, -1.0f, 2.0f, 0.5f};

}  // namespace

TEST(sampler_draws_from_the_softmax) {
    constexpr int n = 20000;
    const auto seen = counts(plain(), kLogits, n);
    double total = 0, chi_square = 0;
    for (float logit : kLogits) {
        total += std::exp(double(logit));
    }
    for (size_t i = 0; i < seen.size(); ++i) {
        const double expected = n * std::exp(double(kLogits[i])) / total;
        chi_square += (seen[i] - expected) * (seen[i] - expected) / expected;
    }
    CHECK(chi_square < 25.7);  // 5 degrees of freedom, p = 0.0001; the seed is fixed
}

TEST(sampler_options_each_cut_the_candidates) {
    struct {
        const char * name;
        void (*set)(SamplerOptions &);
        std::vector<int32_t> possible;
    } cases[] = {
        {"greedy takes the lowest id on ties", [](SamplerOptions & o) { o.temperature = 0; }, {1}},
        {"top_k", [](SamplerOptions & o) { o.top_k = 2; }, {1, 4}},
        {"top_p keeps at least one", [](SamplerOptions & o) { o.top_p = 1e-6f; }, {1}},
        // weights e^2 e^2 e^1 e^.5 e^0 e^-1 of 20.5: two make .72, three .85
        {"top_p", [](SamplerOptions & o) { o.top_p = 0.8f; }, {1, 2, 4}},
        {"min_p", [](SamplerOptions & o) { o.min_p = 0.3f; }, {1, 2, 4}},  // e^-1 = .37 of the best, e^-1.5 = .22
        {"a bias forbids", [](SamplerOptions & o) { o.logit_bias = {{1, -INFINITY}}, o.top_k = 1; }, {4}},
        {"a bias lifts", [](SamplerOptions & o) { o.logit_bias = {{3, 50.0f}}; }, {3}},
    };
    for (const auto & c : cases) {
        SamplerOptions options = plain();
        c.set(options);
        const auto seen = counts(options, kLogits, 3000);
        for (int32_t token = 0; token < int32_t(seen.size()); ++token) {
            const bool possible = std::count(c.possible.begin(), c.possible.end(), token) > 0;
            CHECK((seen[size_t(token)] > 0) == possible);
        }
    }
}

TEST(sampler_penalties_follow_their_formulas) {
    SamplerOptions options = plain();
    options.temperature = 0;
    options.presence_penalty = 0.6f;
    options.frequency_penalty = 0.3f;
    Sampler sampler(options, 6);
    CHECK(sampler.sample(kLogits.data()).token == 1);
    sampler.accept(1);  // 2 - .9
    CHECK(sampler.sample(kLogits.data()).token == 4);
    sampler.accept(4);  // both 1.1, above 1
    CHECK(sampler.sample(kLogits.data()).token == 1);
    sampler.accept(1);  // .8
    sampler.accept(4);
    CHECK(sampler.sample(kLogits.data()).token == 2);
    options = plain();
    options.temperature = 0;
    options.repetition_penalty = 4;
    options.penalty_last_n = 1;
    Sampler forgetful(options, 6);
    forgetful.accept(1);
    CHECK(forgetful.sample(kLogits.data()).token == 4);
    forgetful.accept(4);
    CHECK(forgetful.sample(kLogits.data()).token == 1);
}

TEST(sampler_reports_the_models_own_log_probability) {
    SamplerOptions options = plain();
    options.temperature = 0;
    options.logit_bias = {{3, 50.0f}};
    const Sample sample = Sampler(options, 6).sample(kLogits.data());
    double total = 0;
    for (float logit : kLogits) {
        total += std::exp(double(logit));
    }
    CHECK(sample.token == 3 && std::fabs(sample.logprob - (-1 - std::log(total))) < 1e-6);
}

TEST(sampler_is_deterministic_for_a_seed) {
    SamplerOptions options = plain();
    CHECK(counts(options, kLogits, 50) == counts(options, kLogits, 50));
    Sampler a(options, 6);
    options.seed = 1;
    Sampler b(options, 6);
    int same = 0;
    for (int i = 0; i < 50; ++i) {
        same += a.sample(kLogits.data()).token == b.sample(kLogits.data()).token;
    }
    CHECK(same < 50);
}

TEST(sampler_never_chooses_nan) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> some = {nan, 1.0f, nan};
    CHECK(Sampler(plain(), 3).sample(some.data()).token == 1);
    const std::vector<float> none = {nan, -INFINITY, nan};
    CHECK_THROWS(Sampler(plain(), 3).sample(none.data()), ModelError, "no token can be chosen");
}

TEST(sampler_refuses_options_out_of_range) {
    struct {
        const char * name;
        void (*set)(SamplerOptions &);
    } cases[] = {
        {"temperature", [](SamplerOptions & o) { o.temperature = -1; }},
        {"temperature", [](SamplerOptions & o) { o.temperature = NAN; }},
        {"top_k", [](SamplerOptions & o) { o.top_k = -1; }},
        {"top_p", [](SamplerOptions & o) { o.top_p = 0; }},
        {"min_p", [](SamplerOptions & o) { o.min_p = 1.5f; }},
        {"repetition_penalty", [](SamplerOptions & o) { o.repetition_penalty = 0; }},
        {"presence_penalty", [](SamplerOptions & o) { o.presence_penalty = INFINITY; }},
        {"frequency_penalty", [](SamplerOptions & o) { o.frequency_penalty = NAN; }},
        {"penalty_last_n", [](SamplerOptions & o) { o.penalty_last_n = -2; }},
        {"logit_bias", [](SamplerOptions & o) { o.logit_bias = {{6, 0.0f}}; }},
    };
    for (const auto & c : cases) {
        SamplerOptions options;
        c.set(options);
        CHECK_THROWS(Sampler(options, 6), ArgumentError, c.name);
    }
}

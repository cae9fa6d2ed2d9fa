#pragma once
// Random probes to score, for the tests of every device.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "check.h"
#include "ggml-zipcache.h"

struct ProbeShape {
    int n_kv_heads, group, head_dim, sliding_window;
    int64_t n_tokens, n_probes;
};

inline ProbeShape random_probe_shape(std::mt19937 & random) {
    const int dims[] = {64, 80, 96, 128, 256};
    return {1 + int(random() % 3),
            1 + int(random() % 16),
            dims[random() % 5],
            random() % 3 ? 0 : 1 + int(random() % 100),
            1 + int64_t(random() % (random() % 8 ? 150 : 500)),
            1 + int64_t(random() % 12)};
}

struct ProbeSample {
    std::vector<uint16_t> k;
    std::vector<float> q;
    std::vector<int64_t> position;
    ggml_zipcache_probes probes;
    std::vector<float> before;                   // [n_kv_heads, n_tokens]: sums to be added to
    std::vector<float> want_score, want_square;  // by the reference

    ProbeSample(const ProbeShape & c, std::mt19937 & random) {
        std::normal_distribution<float> normal;
        const int n_heads = c.n_kv_heads * c.group;
        const int64_t stride = c.n_tokens + int64_t(random() % 3);
        k.resize(size_t(c.n_kv_heads) * stride * c.head_dim);
        q.resize(size_t(c.n_probes) * n_heads * c.head_dim);
        position.resize(c.n_probes);
        for (auto & x : k) {
            x = ggml_fp32_to_fp16(normal(random));
        }
        for (auto & x : q) {
            x = 2 * normal(random);
        }
        for (auto & p : position) {
            p = int64_t(random() % c.n_tokens);
        }
        probes = {n_heads,          c.n_kv_heads, c.head_dim, 1 / std::sqrt(float(c.head_dim)),
                  c.sliding_window, c.n_tokens,   stride,     k.data(),
                  position.data(),  q.data()};
        before.assign(size_t(c.n_kv_heads) * c.n_tokens, 0.5f);
        want_score = want_square = before;
        for (int head = 0; head < c.n_kv_heads; ++head) {
            ggml_zipcache_score_probes_ref(&probes, head, 0, c.n_probes, &want_score[head * c.n_tokens],
                                           &want_square[head * c.n_tokens]);
        }
    }
    ProbeSample(const ProbeSample &) = delete;
    ProbeSample & operator=(const ProbeSample &) = delete;

    // Largest difference of the sums over 1 + what they should be.
    double difference(const float * score, const float * square) const {
        double worst = 0;
        for (size_t i = 0; i < before.size(); ++i) {
            for (auto [got, want] : {std::pair(score[i], want_score[i]), std::pair(square[i], want_square[i])}) {
                const double d = std::fabs(got - want) / (1 + want);
                worst = std::max(worst, std::isfinite(d) ? d : INFINITY);
            }
        }
        return worst;
    }
};

inline void describe(const ProbeShape & c, double worst) {
    std::printf("  heads %d x %d dim %d window %d tokens %d probes %d: %g\n", c.n_kv_heads, c.group, c.head_dim,
                c.sliding_window, int(c.n_tokens), int(c.n_probes), worst);
}

// difference(sample, n_probes): ProbeSample::difference() of what a device finds.
template <class Difference>
void check_scores(int n, Difference && difference) {
    constexpr double kTolerance = 4e-3;  // queries of 11 bits against logits of up to 10
    std::mt19937 random(test_seed());
    double most = 0;
    for (int i = 0; i < n; ++i) {
        const ProbeShape c = random_probe_shape(random);
        const double worst = difference(ProbeSample(c, random), c.n_probes);
        most = std::max(most, worst);
        CHECK(worst < kTolerance);
        if (!(worst < kTolerance)) {
            describe(c, worst);
        }
    }
    std::printf("  score_probes: off by at most %.2g\n", most);
}

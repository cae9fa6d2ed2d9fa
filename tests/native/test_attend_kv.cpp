#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "ggml-zipcache.h"

namespace {

struct Case {
    int n_heads, n_kv_heads, head_dim, sliding_window;
    int64_t n_tokens;
    int n_splits;
};

struct Data {
    std::vector<ggml_fp16_t> k, v;
    std::vector<float> q;
    ggml_zipcache_layer layer;
};

Data make(const Case & c, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    Data data;
    const int64_t capacity = c.n_tokens + int64_t(random() % 5);
    for (int64_t i = 0; i < c.n_kv_heads * capacity * c.head_dim; ++i) {
        data.k.push_back(ggml_fp32_to_fp16(normal(random)));
        data.v.push_back(ggml_fp32_to_fp16(normal(random)));
    }
    for (int i = 0; i < c.n_heads * c.head_dim; ++i) {
        data.q.push_back(3 * normal(random));  // sharp attention
    }
    data.layer = {c.n_heads,
                  c.n_kv_heads,
                  c.head_dim,
                  1.0f / std::sqrt(float(c.head_dim)),
                  c.sliding_window,
                  capacity,
                  data.k.data(),
                  data.v.data(),
                  0,
                  nullptr,
                  nullptr,
                  nullptr};
    return data;
}

// log sum exp of the logits of one head.
double plain_log_sum(const Case & c, const Data & data, int head) {
    const int dim = c.head_dim;
    const ggml_fp16_t * k = &data.k[head / (c.n_heads / c.n_kv_heads) * data.layer.capacity * dim];
    double sum = 0;
    for (int64_t t = c.sliding_window > 0 ? std::max<int64_t>(0, c.n_tokens - c.sliding_window) : 0; t < c.n_tokens;
         ++t) {
        double dot = 0;
        for (int i = 0; i < dim; ++i) {
            dot += double(data.q[head * dim + i]) * ggml_fp16_to_fp32(k[t * dim + i]);
        }
        sum += std::exp(dot * data.layer.scale);
    }
    return std::log(sum);
}

// Largest difference between the kernel and the reference, relative to the values' unit scale.
double difference(const Case & c, std::mt19937 & random) {
    const Data data = make(c, random);
    std::vector<float> partial(size_t(c.n_splits) * c.n_heads * (c.head_dim + 2));
    std::vector<float> got(data.q.size()), want(data.q.size());
    for (int split = 0; split < c.n_splits; ++split) {
        ggml_zipcache_attend_kv(&data.layer, data.q.data(), c.n_tokens, split, c.n_splits, partial.data());
    }
    std::vector<float> log_sum(c.n_heads);
    ggml_zipcache_attend_kv_merge(&data.layer, partial.data(), c.n_splits, got.data(), log_sum.data());
    ggml_zipcache_attend_kv_ref(&data.layer, data.q.data(), c.n_tokens, want.data());
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        worst = std::max(worst, std::isfinite(got[i]) ? std::fabs(double(got[i]) - want[i]) : INFINITY);
    }
    for (int head = 0; head < c.n_heads; ++head) {
        worst = std::max(worst, std::fabs(log_sum[head] - plain_log_sum(c, data, head)) / 10);  // of logits up to 30
    }
    return worst;
}

constexpr double kTolerance = 2e-5;  // float sums of up to 1,000 terms of unit scale

}  // namespace

TEST(attend_kv_matches_the_reference_on_chosen_shapes) {
    std::mt19937 random(1);
    const Case cases[] = {
        {9, 3, 64, 0, 1, 1},  {9, 3, 64, 0, 1, 4},  {4, 1, 256, 512, 700, 2}, {32, 8, 128, 0, 129, 3},
        {5, 1, 80, 0, 65, 2}, {6, 1, 96, 7, 64, 2}, {7, 1, 64, 0, 63, 1},     {14, 2, 64, 1, 200, 2},
        {3, 3, 20, 0, 33, 2}, {2, 1, 17, 5, 40, 3}, {8, 8, 16, 0, 1000, 2},   {16, 1, 32, 100, 99, 5},
    };
    for (const Case & c : cases) {
        CHECK(difference(c, random) < kTolerance);
    }
}

TEST(attend_kv_matches_the_reference_on_random_shapes) {
    std::mt19937 random(test_seed());
    const int dims[] = {16, 32, 48, 64, 80, 96, 112, 128, 256, 24, 33};
    for (int i = 0; i < n_cases(2000); ++i) {
        Case c{};
        c.n_kv_heads = 1 + int(random() % 4);
        c.n_heads = c.n_kv_heads * (1 + int(random() % 9));
        c.head_dim = dims[random() % 11];
        c.sliding_window = random() % 3 ? 0 : 1 + int(random() % 100);
        c.n_tokens = 1 + int(random() % 150);
        c.n_splits = 1 + int(random() % 5);
        const double worst = difference(c, random);
        CHECK(worst < kTolerance);
        if (!(worst < kTolerance)) {
            std::printf("  heads %d/%d dim %d window %d tokens %d splits %d: %g\n", c.n_heads, c.n_kv_heads, c.head_dim,
                        c.sliding_window, int(c.n_tokens), c.n_splits, worst);
        }
    }
}

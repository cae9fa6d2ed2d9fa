#include <random>

#include "arena.h"
#include "check.h"
#include "ggml-zipcache-cuda.h"

namespace {

struct Case {
    int n_kv_heads, group, head_dim, sliding_window;
    int64_t n_tokens, n_probes;
};

// Largest difference of the sums over 1 + what they should be.
double difference(const Case & c, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    const int n_heads = c.n_kv_heads * c.group;
    const int64_t stride = c.n_tokens + int64_t(random() % 3);
    std::vector<uint16_t> k(size_t(c.n_kv_heads) * stride * c.head_dim);
    std::vector<float> q(size_t(c.n_probes) * n_heads * c.head_dim);
    std::vector<int64_t> position(c.n_probes);
    for (auto & x : k) {
        x = ggml_fp32_to_fp16(normal(random));
    }
    for (auto & x : q) {
        x = 2 * normal(random);
    }
    for (auto & p : position) {
        p = int64_t(random() % c.n_tokens);
    }
    ggml_zipcache_probes probes = {n_heads,          c.n_kv_heads, c.head_dim, 1 / std::sqrt(float(c.head_dim)),
                                   c.sliding_window, c.n_tokens,   stride,     k.data(),
                                   position.data(),  q.data()};
    std::vector<float> score(size_t(c.n_kv_heads) * c.n_tokens, 0.5f), square(score);
    Arena & arena = Arena::get();
    ggml_zipcache_probes there = probes;
    there.k = arena.put(k);
    there.position = arena.put(position);
    there.q = arena.put(q);
    const ggml_zipcache_cuda_scores scores = {c.n_probes, arena.put(score), arena.put(square)};
    const size_t work = ggml_zipcache_cuda_score_probes_workspace(&probes, c.n_probes);
    auto * workspace = arena.room<uint8_t>(work);
    arena.upload();
    check_op(ggml_zipcache_cuda_score_probes(&there, &scores, workspace, work, nullptr));
    const auto got = arena.read(scores.score, score.size()), got_square = arena.read(scores.square, score.size());
    double worst = 0;
    for (int head = 0; head < c.n_kv_heads; ++head) {
        ggml_zipcache_score_probes_ref(&probes, head, 0, c.n_probes, &score[head * c.n_tokens],
                                       &square[head * c.n_tokens]);
    }
    for (size_t i = 0; i < score.size(); ++i) {
        for (double d :
             {std::fabs(got[i] - score[i]) / (1 + score[i]), std::fabs(got_square[i] - square[i]) / (1 + square[i])}) {
            worst = std::max(worst, std::isfinite(d) ? d : INFINITY);
        }
    }
    return worst;
}

constexpr double kTolerance = 4e-3;  // queries of 11 bits against logits of up to 10

}  // namespace

TEST(cuda_score_probes_matches_the_reference) {
    std::mt19937 random(test_seed());
    const int dims[] = {64, 80, 96, 128, 256};
    double most = 0;
    for (int i = 0; i < n_cases(2000); ++i) {
        const Case c = {1 + int(random() % 3),
                        1 + int(random() % 16),
                        dims[random() % 5],
                        random() % 3 ? 0 : 1 + int(random() % 100),
                        1 + int64_t(random() % (random() % 8 ? 150 : 500)),
                        1 + int64_t(random() % 12)};
        const double worst = difference(c, random);
        most = std::max(most, worst);
        CHECK(worst < kTolerance);
        if (!(worst < kTolerance)) {
            std::printf("  heads %d x %d dim %d window %d tokens %d probes %d: %g\n", c.n_kv_heads, c.group, c.head_dim,
                        c.sliding_window, int(c.n_tokens), int(c.n_probes), worst);
        }
    }
    std::printf("  score_probes: off by at most %.2g\n", most);
}

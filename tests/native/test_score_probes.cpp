#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "ggml-zipcache.h"

TEST(score_probes_matches_the_reference) {
    std::mt19937 random(test_seed());
    std::normal_distribution<float> normal;
    for (int i = 0; i < n_cases(300); ++i) {
        ggml_zipcache_probes p = {};
        const int dims[] = {8, 20, 24, 64, 80, 96, 128, 256};
        p.head_dim = dims[random() % 8];
        p.n_kv_heads = 1 + int(random() % 3);
        p.n_heads = p.n_kv_heads * (1 + int(random() % 4));
        p.scale = 1 / std::sqrt(float(p.head_dim));
        p.n_tokens = 1 + int64_t(random() % 150);
        p.k_stride = p.n_tokens + int64_t(random() % 4);
        p.sliding_window = random() % 3 == 0 ? 1 + int(random() % p.n_tokens) : 0;
        const int64_t n_probes = 1 + int64_t(random() % 60);
        std::vector<ggml_fp16_t> k(p.n_kv_heads * p.k_stride * p.head_dim);
        for (ggml_fp16_t & x : k) {
            x = ggml_fp32_to_fp16(normal(random));
        }
        std::vector<float> q(n_probes * p.n_heads * p.head_dim);
        for (float & x : q) {
            x = 3 * normal(random);
        }
        std::vector<int64_t> position(n_probes);
        for (int64_t & x : position) {
            x = int64_t(random() % p.n_tokens);
        }
        p.k = k.data();
        p.q = q.data();
        p.position = position.data();
        const int head = int(random() % p.n_kv_heads);
        const int64_t first = int64_t(random() % n_probes);
        std::vector<float> got(p.n_tokens, 0.25f), want = got, got_square = got, want_square = got;
        ggml_zipcache_score_probes(&p, head, first, n_probes, got.data(), got_square.data());
        ggml_zipcache_score_probes_ref(&p, head, first, n_probes, want.data(), want_square.data());
        double worst = 0, total = 0;
        for (int64_t t = 0; t < p.n_tokens; ++t) {
            worst = std::max(
                {worst, std::fabs(double(got[t]) - want[t]), std::fabs(double(got_square[t]) - want_square[t])});
            total += got[t] - 0.25;
        }
        const double rows = double(n_probes - first) * p.n_heads / p.n_kv_heads;
        if (!(worst < 1e-5 * rows + 1e-5 && std::fabs(total - rows) < 1e-3 * rows)) {  // each row sums to 1
            test_failed(__FILE__, __LINE__,
                        std::to_string(worst) + ", total " + std::to_string(total) + " of " + std::to_string(rows) +
                            ": dim " + std::to_string(p.head_dim) + " tokens " + std::to_string(p.n_tokens));
        }
    }
}

#include <algorithm>
#include <numeric>
#include <random>

#include "buffers.h"
#include "check.h"

namespace {

// Tiers of one ranking by sorting.
std::vector<uint8_t> ranked(const float * saliency, int n, int n_salient) {
    std::vector<int> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](int a, int b) { return saliency[a] > saliency[b] || (saliency[a] == saliency[b] && a < b); });
    std::vector<uint8_t> tier(n, 1);
    for (int i = 0; i < n_salient; ++i) {
        tier[order[i]] = 0;
    }
    return tier;
}

}  // namespace

TEST(metal_top_ratio_ranks_as_sorting_does) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        const int n_ranks = 1 + int(random() % 3), n = 1 + int(random() % (random() % 4 ? 600 : 20));
        const int n_salient = int(random() % (n + 1)), values = random() % 2 ? 5 : 1 << 24;  // many equal ones, few
        std::vector<float> saliency(size_t(n_ranks) * n);
        for (float & x : saliency) {
            x = float(random() % values) * 1e-6f;
        }
        Buffers buffers;
        auto * tier = buffers.room<uint8_t>(saliency.size());
        const ggml_zipcache_metal_ranking ranking = {n_ranks, n, n_salient, buffers.send(saliency),
                                                     Buffers::address(tier)};
        const auto encoder = emulator::encoder();
        check_op(ggml_zipcache_metal_top_ratio(&ranking, &encoder));
        for (int r = 0; r < n_ranks; ++r) {
            const auto want = ranked(&saliency[size_t(r) * n], n, n_salient);
            CHECK(std::equal(want.begin(), want.end(), tier + size_t(r) * n));
        }
    }
}

#include "kv/kv_plan.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kv/kv_cache.h"

namespace zipcache {
namespace {

// Codes, parameters and order of n tokens of one layer. The budget of water-filling holds them all; elsewhere how many
// tokens take each tier is known, and which is all the same.
size_t segment_bytes(const Policy & policy, const HParams & h, int64_t n) {
    if (policy.ranking == Ranking::water_fill) {
        return size_t(std::ceil(policy.budget * double(2 * n * h.n_kv_heads * h.head_dim) / 8));
    }
    const ggml_zipcache_format & format = policy.format_for(n);
    std::vector<uint8_t> tiers(format.same_order ? n : h.n_kv_heads * n);
    if (policy.ranking == Ranking::top_ratio || policy.ranking == Ranking::evict) {
        const int64_t n_high = std::min(n, policy.n_salient(n) + policy.n_newest(n));
        for (size_t rank = 0; rank < tiers.size(); rank += n) {
            std::fill(tiers.begin() + int64_t(rank) + n_high, tiers.begin() + int64_t(rank) + n, uint8_t(1));
        }
    }
    size_t bytes = ggml_zipcache_segment_bytes(&format, n, tiers.data());
    if (policy.corrects) {
        bytes += ggml_zipcache_correction_bytes(&format, n, policy.rank(n), float(policy.options.outliers));
    }
    return bytes + (policy.ranking == Ranking::evict ? n * sizeof(float) : 0);  // and their scores
}

}  // namespace

size_t plan_kv(const Policy & policy, const HParams & h, int64_t n_tokens) {
    if (!policy.compresses) {
        return f16_cache_bytes(h, n_tokens);
    }
    const size_t row = f16_cache_bytes(h, 1) / h.n_layers;
    size_t bytes = row * h.n_layers * policy.window_capacity();
    if (policy.wants_decode_probes()) {
        const size_t n_queries = choose_steps(policy.options, policy.window_capacity(), 0).size() * h.n_heads;
        bytes += h.n_layers * n_queries * (h.head_dim * sizeof(uint16_t) + sizeof(float));
    }
    for (int layer = 0; layer < h.n_layers; ++layer) {
        int64_t n = n_tokens < policy.window_capacity() ? 0 : policy.whole(n_tokens - policy.n_recent);
        if (const int64_t sliding = h.window_of(layer); sliding > 0) {
            n = std::min(n, std::max<int64_t>(0, sliding - 1 - policy.n_recent));
        }
        bytes += n > 0 ? segment_bytes(policy, h, n) : 0;
    }
    return bytes;
}

}  // namespace zipcache

// The dispatches of score_probes.
#include "metal/encode.h"

namespace zipcache::metal_abi {
namespace {

constexpr const char * kRowsPass[] = {"score_probes_rows_64", "score_probes_rows_80", "score_probes_rows_96",
                                      "score_probes_rows_128", "score_probes_rows_256"};
constexpr const char * kColumnsPass[] = {"score_probes_columns_64", "score_probes_columns_80",
                                         "score_probes_columns_96", "score_probes_columns_128",
                                         "score_probes_columns_256"};

// Offsets in the workspace, which begins with the rows.
struct Sizes {
    int64_t n_rows, n_padded;
    uint64_t log_sum, seen, size;

    explicit Sizes(const ggml_zipcache_metal_probes & p) {
        const uint64_t heads = p.n_kv_heads;
        n_rows = int64_t(p.n_probes) * (p.n_heads / p.n_kv_heads);
        n_padded = (n_rows + kScoreRows - 1) / kScoreRows * kScoreRows;
        log_sum = aligned(heads * n_padded * p.head_dim * 2);
        seen = aligned(log_sum + heads * n_padded * sizeof(float));
        size = seen + n_padded * 2 * sizeof(int32_t);
    }
};

const char * probes_error(const ggml_zipcache_metal_probes & p) {
    if (p.n_kv_heads < 1 || p.n_heads < p.n_kv_heads || p.n_heads % p.n_kv_heads != 0) {
        return "score_probes got query heads that don't fit the KV heads; accepted: a multiple of them";
    }
    if (p.n_tokens < 1 || p.n_tokens > INT32_MAX / 4 || p.n_probes < 1 ||
        int64_t(p.n_probes) * p.n_heads > INT32_MAX / 4) {
        return "score_probes got no tokens or no probes, or too many; accepted: 1 to 2^29";
    }
    return by_head_dim(p.head_dim, kRowsPass)
               ? nullptr
               : "score_probes got a head_dim that it has no kernel for; accepted: 64, 80, 96, 128, 256";
}

}  // namespace
}  // namespace zipcache::metal_abi

size_t ggml_zipcache_metal_score_probes_workspace(const ggml_zipcache_metal_probes * probes) {
    using namespace zipcache::metal_abi;
    return probes_error(*probes) ? 0 : Sizes(*probes).size;
}

const char * ggml_zipcache_metal_score_probes(const ggml_zipcache_metal_probes * probes,
                                              ggml_zipcache_metal_address workspace,
                                              const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    const auto & p = *probes;
    if (const char * error = probes_error(p)) {
        return error;
    }
    const Sizes s(p);
    const ScoreParams params = {p.k,
                                p.position,
                                p.q,
                                p.score,
                                p.square,
                                workspace,
                                workspace + s.log_sum,
                                workspace + s.seen,
                                p.k_stride,
                                p.n_heads,
                                p.n_kv_heads,
                                p.head_dim,
                                p.sliding_window,
                                int(p.n_tokens),
                                int(s.n_rows),
                                int(s.n_padded),
                                p.scale};
    const Encoder to(*encoder);
    const int shared = score_threadgroup_bytes(p.head_dim);
    to.dispatch("score_probes_prepare", params, {s.n_padded, p.n_kv_heads, 1, kSimd});
    to.dispatch(by_head_dim(p.head_dim, kRowsPass), params,
                {s.n_padded / kScoreRows, p.n_kv_heads, 1, score_threads(), shared});
    to.dispatch(by_head_dim(p.head_dim, kColumnsPass), params,
                {(p.n_tokens + kScoreTokens - 1) / kScoreTokens, p.n_kv_heads, 1, score_threads(), shared});
    return nullptr;
}

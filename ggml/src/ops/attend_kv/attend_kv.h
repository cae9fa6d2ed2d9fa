#pragma once
#include <algorithm>
#include <cstdint>

#include "ggml-zipcache.h"

// Shared by the variants of attend_kv; the contract is in ggml-zipcache.h.
namespace zipcache::attend_kv {

struct TokenRange {
    int64_t first, last;  // [first, last)
};

inline TokenRange visible_tokens(const ggml_zipcache_layer & layer, int64_t n_tokens) {
    const int64_t window = layer.sliding_window;
    return {window > 0 ? std::max<int64_t>(0, n_tokens - window) : 0, n_tokens};
}

inline TokenRange split_range(TokenRange all, int split, int n_splits) {
    const int64_t n = all.last - all.first;
    return {all.first + n * split / n_splits, all.first + n * (split + 1) / n_splits};
}

// One KV head's share of a split.
struct HeadTask {
    const float * q;  // [n_queries, head_dim] f32, the query heads of this KV head, already times scale
    int n_queries;
    int head_dim;
    const uint16_t * k;  // [n_tokens, head_dim] f16
    const uint16_t * v;  // [n_tokens, head_dim] f16
    int64_t n_tokens;
    float * partial;  // [n_queries, head_dim + 2] f32
};

using HeadKernel = void (*)(const HeadTask &);

void head_portable(const HeadTask & task);
HeadKernel head_avx2();  // nullptr where not compiled
HeadKernel head_avx512();

}  // namespace zipcache::attend_kv

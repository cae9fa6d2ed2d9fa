#pragma once
#include <algorithm>
#include <cstdint>

#include "correction.h"
#include "segment.h"

// Shared by the variants of attend_kv; the contract is in ggml-zipcache.h.
namespace zipcache::attend_kv {

struct TokenRange {
    int64_t first, last;  // [first, last)
};

// Tokens of the window that are seen.
inline TokenRange visible_tokens(const ggml_zipcache_layer & layer, int64_t n_tokens) {
    const int64_t window = layer.sliding_window;
    return {window > 0 ? std::max<int64_t>(0, n_tokens - window) : 0, n_tokens};
}

inline TokenRange split_range(TokenRange all, int split, int n_splits) {
    const int64_t n = all.last - all.first;
    return {all.first + n * split / n_splits, all.first + n * (split + 1) / n_splits};
}

// One KV head's share of a split of the window.
struct WindowTask {
    const float * q;  // [n_queries, head_dim] f32, the query heads of this KV head, already times scale
    int n_queries;
    int head_dim;
    const uint16_t * k;  // [n_tokens, head_dim] f16
    const uint16_t * v;  // [n_tokens, head_dim] f16
    int64_t n_tokens;
    float * partial;  // [n_queries, head_dim + 2] f32
};

// The query heads of one KV head over a split's share of segments that are of one format and one pair of divisors.
struct PackedTask {
    const ggml_zipcache_segment * segments;
    int64_t n_segments;
    int head;         // KV head
    const float * q;  // [n_queries, head_dim] f32, in the keys' stored space, already times scale
    int n_queries;    // 1 to 4
    int split;        // of n_splits runs of each segment's blocks
    int n_splits;
    int turn;         // which split takes the blocks left over
    float * out;      // [n_queries, head_dim] f32: unnormalized, in the values' stored space
    float * maximum;  // [n_queries] of the logits
    float * sum;      // [n_queries] of exp(logit - maximum)
};

using WindowKernel = void (*)(const WindowTask &);
using PackedKernel = void (*)(const PackedTask &);

void window_portable(const WindowTask & task);
// Those that are built for this machine's architecture.
void window_avx2(const WindowTask & task);
void window_avx512(const WindowTask & task);
void window_neon(const WindowTask & task);
void packed_avx2(const PackedTask & task);
void packed_vnni(const PackedTask & task);  // 256-bit AVX-512 VNNI
void packed_neon(const PackedTask & task);
void packed_dotprod(const PackedTask & task);

// The vector kernels take whole vectors of channels, and parameters of tokens for whole chunks of them.
inline bool vectorizes(const ggml_zipcache_format & f) {
    auto fits = [&](const ggml_zipcache_side & side) {
        return side.scope != GGML_ZIPCACHE_SCOPE_TOKEN || side.block >= f.head_dim || side.block % 32 == 0;
    };
    return f.head_dim % 8 == 0 && f.head_dim <= 512 && fits(f.k) && fits(f.v);
}

// Attention over one whole segment by plain loops, added to partial
// [n_heads, head_dim + 2]. Defined in attend_kv_ref.cpp.
void add_segment_ref(const ggml_zipcache_layer & layer, const ggml_zipcache_segment & segment, const float * q,
                     float * partial);

}  // namespace zipcache::attend_kv

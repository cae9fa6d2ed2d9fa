#pragma once
#include "segment.h"

// Shared by the variants of attend_segment; the contract is in ggml-zipcache.h.
namespace zipcache::attend_segment {

// The query heads of one KV head over some groups of a segment.
struct HeadTask {
    const ggml_zipcache_format & format;
    const uint8_t * segment;
    int head;             // KV head
    const float * q;      // [n_queries, head_dim] f32, in the keys' stored space, already times scale
    int n_queries;        // 1 to 4
    int64_t first, last;  // groups [first, last)
    float * out;          // [n_queries, head_dim] f32: unnormalized, in the values' stored space
    float * maximum;      // [n_queries] of the logits
    float * sum;          // [n_queries] of exp(logit - maximum)
};

using HeadKernel = void (*)(const HeadTask &);

HeadKernel head_avx2();  // nullptr where not compiled
HeadKernel head_vnni();  // 256-bit AVX-512 VNNI

// The vector kernels take whole vectors of channels, and one pair for all channels of a token and head.
inline bool vectorizes(const ggml_zipcache_format & f) {
    auto fits = [&](const ggml_zipcache_side & side) {
        return side.scope != GGML_ZIPCACHE_SCOPE_TOKEN || side.block == f.head_dim;
    };
    return f.head_dim % 8 == 0 && f.head_dim <= 512 && fits(f.k) && fits(f.v);
}

}  // namespace zipcache::attend_segment

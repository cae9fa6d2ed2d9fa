// The dispatches of append_kv, index_kv and attend_kv.
#include <algorithm>

#include "metal/encode.h"

namespace zipcache::metal_abi {
namespace {

constexpr const char * kAttend[] = {"attend_kv_64", "attend_kv_80", "attend_kv_96", "attend_kv_128", "attend_kv_256"};
constexpr int kMaxSplits = 128;

struct Shape {
    int n_passes, n_splits, n_items;  // n_items: [n_sequences, n_kv_heads, n_passes]
};

Shape shape_of(const ggml_zipcache_metal_attend_args & a) {
    Shape s = {};
    s.n_passes = (a.n_heads / a.n_kv_heads + kRows - 1) / kRows;
    s.n_items = a.n_sequences * a.n_kv_heads * s.n_passes;
    s.n_splits = std::clamp((a.n_groups + s.n_items - 1) / s.n_items, 1, kMaxSplits);
    return s;
}

const char * attend_error(const ggml_zipcache_metal_attend_args & a) {
    if (a.n_kv_heads < 1 || a.n_heads % a.n_kv_heads != 0 || a.n_heads / a.n_kv_heads < 1 ||
        a.n_heads / a.n_kv_heads > 16) {
        return "attend_kv got query heads that don't fit the KV heads; accepted: 1 to 16 for each";
    }
    if (a.n_sequences < 1 || a.n_sequences > 4096 || a.n_kv_heads > 1024) {
        return "attend_kv got too few or too many sequences or KV heads; accepted: 1 to 4096, 1 to 1024";
    }
    if (!by_head_dim(a.head_dim, kAttend)) {
        return "attend_kv got a head_dim that it has no kernel for; accepted: 64, 80, 96, 128, 256";
    }
    return nullptr;
}

// Offsets in an index.
struct IndexPlaces {
    uint64_t n_blocks, before, run_end, records, blocks, size;
};

IndexPlaces index_places(int n_kv_heads, int max_segments, int max_blocks) {
    const uint64_t heads = n_kv_heads, segments = max_segments;
    IndexPlaces p = {};
    p.n_blocks = aligned(sizeof(IndexHeader));
    p.before = aligned(p.n_blocks + heads * sizeof(uint32_t));
    p.run_end = aligned(p.before + heads * (segments + 1) * sizeof(uint32_t));
    p.records = aligned(p.run_end + heads * segments * sizeof(uint32_t));
    p.blocks = aligned(p.records + heads * segments * sizeof(HeadRecord));
    p.size = p.blocks + heads * max_blocks * sizeof(BlockRef);
    return p;
}

}  // namespace
}  // namespace zipcache::metal_abi

size_t ggml_zipcache_metal_index_bytes(int32_t n_kv_heads, int32_t max_segments, int32_t max_blocks) {
    return zipcache::metal_abi::index_places(n_kv_heads, max_segments, max_blocks).size;
}

const char * ggml_zipcache_metal_index_kv(const ggml_zipcache_metal_index_args * args,
                                          const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    const auto & a = *args;
    if (a.n_kv_heads < 1 || a.max_segments < 0 || a.max_segments > 65535 || a.max_blocks < 0) {
        return "index_kv got a count out of range; accepted: KV heads from 1, segments up to 65535, blocks from 0";
    }
    const IndexPlaces at = index_places(a.n_kv_heads, a.max_segments, a.max_blocks);
    const IndexParams params = {a.segments,
                                a.n_segments,
                                a.index,
                                a.index + at.n_blocks,
                                a.index + at.before,
                                a.index + at.run_end,
                                a.index + at.records,
                                a.index + at.blocks,
                                a.n_kv_heads,
                                a.head_dim,
                                a.max_segments,
                                a.max_blocks};
    const Encoder to(*encoder);
    to.dispatch("index_kv_segments", params, {a.n_kv_heads, 1, 1, kIndexThreads});
    to.dispatch("index_kv_blocks", params,
                {(a.max_blocks + kIndexThreads - 1) / kIndexThreads, a.n_kv_heads, 1, kIndexThreads});
    return nullptr;
}

const char * ggml_zipcache_metal_append_kv(const ggml_zipcache_metal_attend_args * args, ggml_zipcache_metal_address k,
                                           ggml_zipcache_metal_address v, const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    if (const char * error = attend_error(*args)) {
        return error;
    }
    const AppendParams params = {args->sequences, k, v, args->n_kv_heads, args->head_dim};
    Encoder(*encoder).dispatch("append_kv", params, {args->n_kv_heads, args->n_sequences, 1, kAppendThreads});
    return nullptr;
}

size_t ggml_zipcache_metal_attend_kv_workspace(const ggml_zipcache_metal_attend_args * args) {
    using namespace zipcache::metal_abi;
    if (attend_error(*args)) {
        return 0;
    }
    const Shape s = shape_of(*args);
    return size_t(s.n_items) * s.n_splits * kRows * size_t(args->head_dim + 2) * sizeof(float);
}

const char * ggml_zipcache_metal_attend_kv(const ggml_zipcache_metal_attend_args * args,
                                           ggml_zipcache_metal_address workspace,
                                           const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    const auto & a = *args;
    if (const char * error = attend_error(a)) {
        return error;
    }
    const Shape s = shape_of(a);
    const AttendParams params = {a.sequences, a.q,        a.out,      workspace,        a.n_heads, a.n_kv_heads,
                                 s.n_passes,  s.n_splits, a.head_dim, a.sliding_window, a.scale,   0};
    const Encoder to(*encoder);
    to.dispatch(by_head_dim(a.head_dim, kAttend), params,
                {s.n_splits, a.n_kv_heads * s.n_passes, a.n_sequences, attend_simdgroups(a.head_dim) * kSimd,
                 attend_threadgroup_bytes(a.head_dim)});
    to.dispatch("attend_kv_merge", params, {a.n_kv_heads * s.n_passes, a.n_sequences, 1, kMergeThreads});
    return nullptr;
}

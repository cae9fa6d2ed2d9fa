#pragma once
// A segment in device order. Header, heads, tags and their meaning are those of format.h; so are the codes and the
// parameters, but they lie as the lanes of a warp want them, for mma.m16n8k32 with 8-bit integers.
//
// A block's places are padded to a multiple of 16. It holds, each part aligned to kAlign:
//   K codes, K parameters, V codes, V parameters
// How lanes share them: lane_order.h.
#include "lane_order.h"
#include "segment.h"

namespace zipcache::cuda {

using format::align;
using format::kAlign;
using lanes::kLanes;
using lanes::kStep;
using lanes::lane_words;
using lanes::vector_words;

constexpr uint32_t kCudaMagic = 0x4443495A;  // "ZICD"

constexpr int64_t step_places(int64_t n) {
    return (n + kStep - 1) / kStep * kStep;
}

constexpr format::Planes cuda_planes(int bits) {
    if (bits == 8) {
        format::Planes whole;
        whole.n = 1;
        whole.width[0] = 8;
        return whole;
    }
    return format::planes_of(bits);
}

constexpr int64_t plane_bytes(int64_t n_places, int head_dim, int width) {
    return n_places / kStep * lanes::step_bytes(head_dim, width);
}

constexpr int64_t codes_bytes(int64_t n_places, int head_dim, int bits) {
    const format::Planes planes = cuda_planes(bits);
    int64_t bytes = 0;
    for (int i = 0; i < planes.n; ++i) {
        bytes += plane_bytes(n_places, head_dim, planes.width[i]);
    }
    return bytes;
}

// Where a code's bits lie in its plane.
constexpr format::Spot word_spot(int step, int reg, int lane, int byte, int head_dim, int width) {
    const int words = lane_words(head_dim, width), vector = vector_words(words), word = reg / (8 / width);
    const int64_t at = ((int64_t(step) * (words / vector) + word / vector) * kLanes + lane) * vector + word % vector;
    return {at * 4 + byte, reg % (8 / width) * width};
}

constexpr format::Spot cuda_k_spot(int place, int channel, int head_dim, int width) {
    const int reg = place % kStep / 8 * (head_dim / 16) + channel / 16;
    return word_spot(place / kStep, reg, place % 8 * 4 + channel % 16 / 4, channel % 4, head_dim, width);
}

constexpr format::Spot cuda_v_spot(int place, int channel, int head_dim, int width) {
    const int lane = channel % 8 * 4 + place % 8 / 2;
    return word_spot(place / kStep, channel / 8, lane, place % kStep / 8 * 2 + place % 2, head_dim, width);
}

static_assert(plane_bytes(64, 128, 4) == 64 * 128 / 2);
static_assert(cuda_k_spot(9, 37, 128, 4).byte == 597 && cuda_k_spot(9, 37, 128, 1).shift == 2);
static_assert(cuda_v_spot(9, 37, 128, 4).byte == 331 && cuda_v_spot(9, 37, 128, 1).shift == 4);

using lanes::channel_index;

constexpr int64_t place_index(int64_t place, int64_t n_places) {
    return lanes::place_index(static_cast<int>(place), static_cast<int>(n_places));
}

// A block of n places of one tier: offsets from its start.
struct BlockLayout {
    int64_t k_params, v_codes, v_params, size;
};

constexpr BlockLayout block_layout(const ggml_zipcache_format & f, int tier, int64_t n_places) {
    BlockLayout b = {};
    b.k_params = codes_bytes(n_places, f.head_dim, f.k.bits[tier]);
    b.v_codes = align(b.k_params + format::block_param_entries(f, f.k, n_places) * format::entry_bytes(f.k.params));
    b.v_params = b.v_codes + codes_bytes(n_places, f.head_dim, f.v.bits[tier]);
    b.size = align(b.v_params + format::block_param_entries(f, f.v, n_places) * format::entry_bytes(f.v.params));
    return b;
}

constexpr int64_t cuda_tier_bytes(const ggml_zipcache_format & f, int tier, int64_t count) {
    if (format::evicts(f, tier)) {
        return 0;
    }
    const int64_t rest = count % f.group;
    return count / f.group * block_layout(f, tier, step_places(f.group)).size +
           (rest ? block_layout(f, tier, step_places(rest)).size : 0);
}

constexpr int64_t cuda_tier_places(const ggml_zipcache_format & f, int tier, int64_t count) {
    return format::evicts(f, tier) ? 0 : count / f.group * step_places(f.group) + step_places(count % f.group);
}

constexpr int64_t tier_blocks(const ggml_zipcache_format & f, int tier, int64_t count) {
    return format::evicts(f, tier) ? 0 : (count + f.group - 1) / f.group;
}

// Offsets from the start of a segment.
struct SegmentLayout {
    int64_t heads, head_bytes, tags, k_params, v_params, k_shared, v_shared, blocks;
};

constexpr SegmentLayout segment_layout(const ggml_zipcache_format & f, int64_t n_tokens, int64_t n_places) {
    SegmentLayout l = {};
    l.heads = align(sizeof(format::SegmentHeader));
    l.head_bytes = 2 * f.n_tiers * int64_t(sizeof(uint32_t)) + int64_t(sizeof(format::HeadUnits));
    l.tags = align(l.heads + f.n_kv_heads * l.head_bytes);
    l.k_params = align(l.tags + format::n_orders(f) * format::tag_bytes(f, n_tokens));
    l.v_params = align(l.k_params + f.n_kv_heads * format::segment_param_bytes(f, f.k));
    l.k_shared = align(l.v_params + f.n_kv_heads * format::segment_param_bytes(f, f.v));
    l.v_shared = align(l.k_shared + (format::spans_heads(f, f.k) ? n_places * int64_t(sizeof(format::Pair)) : 0));
    l.blocks = align(l.v_shared + (format::spans_heads(f, f.v) ? n_places * int64_t(sizeof(format::Pair)) : 0));
    return l;
}

}  // namespace zipcache::cuda

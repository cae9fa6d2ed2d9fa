#pragma once
// Reads a segment's parts by name; format.h has the layout.
#include <algorithm>

#include "format.h"

namespace zipcache::format {

// [n_kv_heads, n_tiers, head_dim] Pair for a scope that lasts the whole segment, else none.
inline int64_t segment_pairs(const ggml_zipcache_format & f, const ggml_zipcache_side & side) {
    return side.scope == GGML_ZIPCACHE_SCOPE_SEGMENT ? int64_t(f.n_kv_heads) * side.n_tiers * f.head_dim : 0;
}

inline int64_t n_groups(int64_t n_tokens) {
    return (n_tokens + kGroup - 1) / kGroup;
}

inline int group_tokens(int64_t group, int64_t n_tokens) {
    return static_cast<int>(std::min<int64_t>(kGroup, n_tokens - group * kGroup));
}

// Offsets from the start of the segment.
struct SegmentLayout {
    int64_t directory, k_pairs, v_pairs, blocks;

    SegmentLayout(const ggml_zipcache_format & f, int64_t n_tokens) {
        directory = sizeof(SegmentHeader);
        k_pairs = align(directory + n_groups(n_tokens) * f.n_kv_heads * int64_t(sizeof(uint32_t)));
        v_pairs = align(k_pairs + segment_pairs(f, f.k) * int64_t(sizeof(Pair)));
        blocks = align(v_pairs + segment_pairs(f, f.v) * int64_t(sizeof(Pair)));
    }
};

// One side of a block: where its tiers begin, counted in places.
struct SideLayout {
    int n_places = 0;                 // evicted tokens have none
    int first_place[kMaxTiers] = {};  // of each tier
    int64_t codes = 0;                // offset from the start of the block
    int64_t tier_codes[kMaxTiers] = {};
    int64_t pairs = 0;
};

// Offsets from the start of the block.
struct BlockLayout {
    int64_t join = 0;
    SideLayout k, v;
    int64_t size = 0;

    BlockLayout(const ggml_zipcache_format & f, const BlockHeader & header) {
        int64_t at = sizeof(BlockHeader);
        place(k, f.k, header.n_k);
        place(v, f.v, header.n_v);
        join = at;
        at = align(at + (f.same_order ? 0 : v.n_places));
        at = codes(k, f.k, header.n_k, f.head_dim, k_plane_bytes, at);
        at = codes(v, f.v, header.n_v, f.head_dim, v_plane_bytes, at);
        at = pairs(k, f, f.k, at);
        at = pairs(v, f, f.v, at);
        size = at;
    }

  private:
    static void place(SideLayout & layout, const ggml_zipcache_side & side, const uint8_t * counts) {
        for (int tier = 0; tier < side.n_tiers; ++tier) {
            layout.first_place[tier] = layout.n_places;
            layout.n_places += side.bits[tier] > 0 ? tile_places(counts[tier]) : 0;
        }
    }

    static int64_t codes(SideLayout & layout, const ggml_zipcache_side & side, const uint8_t * counts, int head_dim,
                         int (*plane_bytes)(int, int, int), int64_t at) {
        layout.codes = at;
        for (int tier = 0; tier < side.n_tiers; ++tier) {
            layout.tier_codes[tier] = at;
            const Planes planes = planes_of(side.bits[tier]);
            for (int i = 0; i < planes.n; ++i) {
                at += plane_bytes(tile_places(counts[tier]), head_dim, planes.width[i]);
            }
        }
        return at;
    }

    int64_t pairs(SideLayout & layout, const ggml_zipcache_format & f, const ggml_zipcache_side & side,
                  int64_t at) const {
        layout.pairs = at;
        int64_t n = 0;
        if (side.scope == GGML_ZIPCACHE_SCOPE_GROUP) {
            n = int64_t(side.n_tiers) * f.head_dim;
        } else if (side.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
            n = int64_t(k.n_places) * (f.head_dim / side.block);
        }
        return align(at + n * int64_t(sizeof(Pair)));
    }
};

// The tier of a token of a block.
inline int tier_of(const uint8_t * tiers, int token) {
    return tiers[token / 4] >> (token % 4 * 2) & 3;
}

// places[token] = its place on one side, -1 if evicted.
inline void token_places(const ggml_zipcache_side & side, const SideLayout & layout, const uint8_t * tiers,
                         int n_tokens, int16_t * places) {
    int next[kMaxTiers];
    for (int tier = 0; tier < side.n_tiers; ++tier) {
        next[tier] = layout.first_place[tier];
    }
    for (int token = 0; token < n_tokens; ++token) {
        const int tier = tier_of(tiers, token);
        places[token] = static_cast<int16_t>(side.bits[tier] > 0 ? next[tier]++ : -1);
    }
}

inline int64_t segment_tokens(const uint8_t * segment) {
    return reinterpret_cast<const SegmentHeader *>(segment)->n_tokens;
}

// dequantize_kv before it rounds to f16: k, v [n_kv_heads, stride, head_dim] f32; kept [n_kv_heads, n]: 0 where the
// key was evicted. Defined in dequantize_kv_ref.cpp.
void dequantize(const ggml_zipcache_format & f, const uint8_t * segment, int64_t first, int64_t n,
                const float * k_divisor, const float * v_divisor, int64_t stride, float * k, float * v, uint8_t * kept);

}  // namespace zipcache::format

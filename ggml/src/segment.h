#pragma once
// Reads a segment's parts by name; format.h has the layout.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "format.h"

namespace zipcache::format {

constexpr int n_orders(const ggml_zipcache_format & f) {
    return f.same_order ? 1 : f.n_kv_heads;
}

constexpr bool evicts(const ggml_zipcache_format & f, int tier) {
    return f.k.bits[tier] == 0;
}

constexpr int tag_bits(const ggml_zipcache_format & f) {
    return f.n_tiers == 1 ? 0 : f.n_tiers <= 4 ? 2 : 4;
}

constexpr int64_t tag_bytes(const ggml_zipcache_format & f, int64_t n_tokens) {
    return (n_tokens * tag_bits(f) + 7) / 8;
}

constexpr int entry_bytes(ggml_zipcache_params params) {
    switch (params) {
        case GGML_ZIPCACHE_PARAMS_F16_PAIR: return 4;
        case GGML_ZIPCACHE_PARAMS_F8_SCALE: return 1;
        default: return 2;
    }
}

// Parameters by token for all heads at once.
constexpr bool spans_heads(const ggml_zipcache_format & f, const ggml_zipcache_side & side) {
    return side.scope == GGML_ZIPCACHE_SCOPE_TOKEN && side.block > f.head_dim;
}

// Sets of [head_dim] parameters that a head has for the whole segment.
constexpr int segment_sets(const ggml_zipcache_format & f, const ggml_zipcache_side & side) {
    if (side.scope != GGML_ZIPCACHE_SCOPE_SEGMENT) {
        return 0;
    }
    return side.params == GGML_ZIPCACHE_PARAMS_F16_PAIR ? f.n_tiers : 1;
}

constexpr int64_t segment_param_bytes(const ggml_zipcache_format & f, const ggml_zipcache_side & side) {
    return int64_t(segment_sets(f, side)) * f.head_dim * entry_bytes(side.params);
}

// Parameters that one side of a block of n places of codes brings along.
constexpr int64_t block_param_entries(const ggml_zipcache_format & f, const ggml_zipcache_side & side,
                                      int64_t n_places) {
    if (side.scope == GGML_ZIPCACHE_SCOPE_GROUP) {
        return f.head_dim;
    }
    const bool own = side.scope == GGML_ZIPCACHE_SCOPE_TOKEN && !spans_heads(f, side);
    return own ? f.head_dim / side.block * n_places : 0;
}

// The same of a block of any tier.
constexpr int64_t tier_param_entries(const ggml_zipcache_format & f, const ggml_zipcache_side & side, int tier,
                                     int64_t n_places) {
    return side.bits[tier] == kUncoded ? 0 : block_param_entries(f, side, n_places);
}

// A block of n places of one tier: offsets from its start.
struct BlockLayout {
    int64_t v_codes = 0, k_params = 0, v_params = 0, size = 0;

    BlockLayout(const ggml_zipcache_format & f, int tier, int64_t n_places) {
        v_codes = codes_bytes(n_places, f.head_dim, f.k.bits[tier], true);
        k_params = v_codes + codes_bytes(n_places, f.head_dim, f.v.bits[tier], false);
        v_params = k_params + tier_param_entries(f, f.k, tier, n_places) * entry_bytes(f.k.params);
        size = align(v_params + tier_param_entries(f, f.v, tier, n_places) * entry_bytes(f.v.params));
    }
};

// Bytes of all blocks of a tier.
inline int64_t tier_bytes(const ggml_zipcache_format & f, int tier, int64_t count) {
    if (evicts(f, tier)) {
        return 0;
    }
    const int64_t rest = count % f.group;
    return count / f.group * BlockLayout(f, tier, f.group).size +
           (rest ? BlockLayout(f, tier, tile_places(rest)).size : 0);
}

inline int64_t tier_places(const ggml_zipcache_format & f, int tier, int64_t count) {
    return evicts(f, tier) ? 0
                           : count / f.group * f.group + tile_places(count % f.group);  // only the last block is padded
}

// Offsets from the start of a segment.
struct SegmentLayout {
    int64_t heads, head_bytes, tags, k_params, v_params, k_shared, v_shared, blocks;

    SegmentLayout(const ggml_zipcache_format & f, int64_t n_tokens, int64_t n_places) {
        heads = align(sizeof(SegmentHeader));
        head_bytes = 2 * f.n_tiers * int64_t(sizeof(uint32_t)) + int64_t(sizeof(HeadUnits));
        tags = align(heads + f.n_kv_heads * head_bytes);
        k_params = align(tags + n_orders(f) * tag_bytes(f, n_tokens));
        v_params = align(k_params + f.n_kv_heads * segment_param_bytes(f, f.k));
        k_shared = align(v_params + f.n_kv_heads * segment_param_bytes(f, f.v));
        v_shared = align(k_shared + (spans_heads(f, f.k) ? n_places * int64_t(sizeof(Pair)) : 0));
        blocks = align(v_shared + (spans_heads(f, f.v) ? n_places * int64_t(sizeof(Pair)) : 0));
    }
};

inline const SegmentHeader & header_of(const uint8_t * segment) {
    return *reinterpret_cast<const SegmentHeader *>(segment);
}

// One head's table in a segment.
struct HeadTable {
    const uint32_t * counts;   // [n_tiers] tokens
    const uint32_t * offsets;  // [n_tiers] of the first block
    const HeadUnits * units;

    HeadTable(const ggml_zipcache_format & f, const SegmentLayout & layout, const uint8_t * segment, int head) {
        counts = reinterpret_cast<const uint32_t *>(segment + layout.heads + head * layout.head_bytes);
        offsets = counts + f.n_tiers;
        units = reinterpret_cast<const HeadUnits *>(offsets + f.n_tiers);
    }
};

// The tier of a token, from a head's tags.
inline int tier_of(const uint8_t * tags, int bits, int64_t token) {
    return bits == 0 ? 0 : tags[token * bits / 8] >> (token * bits % 8) & ((1 << bits) - 1);
}

// 8-bit ranges, in units.
inline float range_of(uint8_t u) {
    const uint32_t bits = (uint32_t(u) << 19) + (127u << 23);
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x - 1;
}

constexpr float kTopRange = 63487;  // range_of(255)

// The smallest that covers x units, so that nothing is clipped beyond what `shrink` says.
inline uint8_t covering_range(float x) {
    const float y = x + 1;
    uint32_t bits;
    std::memcpy(&bits, &y, sizeof bits);
    const uint32_t u = ((bits + (1u << 19) - 1) >> 19) - (127u << 4);
    return static_cast<uint8_t>(std::min(u, 255u));
}

// Parameters of one scope, wherever they stand.
struct Params {
    const uint8_t * data;
    ggml_zipcache_params kind;
    int64_t n;  // entries
    float range_unit;
    float mid_unit;  // of channels; 0: middles are 256ths of the range
    float low;       // F8: shrink / 2
    float step;      // F8: shrink / (2^bits - 1)
    float bias;      // F16_SCALE: 2^(bits - 1)

    struct Value {
        float scale, min;
    };

    Value at(int64_t i) const {
        switch (kind) {
            case GGML_ZIPCACHE_PARAMS_F16_PAIR: {
                const auto & pair = reinterpret_cast<const Pair *>(data)[i];
                return {ggml_fp16_to_fp32(pair.scale), ggml_fp16_to_fp32(pair.min)};
            }
            case GGML_ZIPCACHE_PARAMS_F16_SCALE: {
                const float scale = ggml_fp16_to_fp32(reinterpret_cast<const ggml_fp16_t *>(data)[i]);
                return {scale, -bias * scale};
            }
            default: {
                const float range = range_of(data[i]) * range_unit;
                const auto mid = kind == GGML_ZIPCACHE_PARAMS_F8_PAIR ? static_cast<int8_t>(data[n + i]) : int8_t(0);
                const float middle = float(mid) * (mid_unit > 0 ? mid_unit : range * (1.0f / 256));
                return {range * step, middle - range * low};
            }
        }
    }
};

constexpr float levels(int bits) {
    return static_cast<float>((1 << bits) - 1);
}

inline Params params_of(const ggml_zipcache_side & side, int tier, const uint8_t * data, int64_t n, float range_unit,
                        float mid_unit) {
    const int bits = side.bits[tier];
    const float shrink = side.shrink[tier];
    return {data,
            side.params,
            n,
            range_unit,
            side.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.0f : mid_unit,
            shrink / 2,
            bits > 0 ? shrink / levels(bits) : 0.0f,
            bits > 0 ? static_cast<float>(1 << (bits - 1)) : 0.0f};
}

// One head of a segment.
struct HeadView {
    const ggml_zipcache_format & f;
    const uint8_t * segment;
    int head;
    SegmentLayout layout;
    HeadTable table;

    HeadView(const ggml_zipcache_format & format, const uint8_t * data, int kv_head)
        : f(format),
          segment(data),
          head(kv_head),
          layout(format, header_of(data).n_tokens, header_of(data).n_places),
          table(format, layout, data, kv_head) {}

    const uint8_t * tags() const {
        return segment + layout.tags + (f.same_order ? 0 : head * tag_bytes(f, header_of(segment).n_tokens));
    }
};

// One block of a head, found.
struct Block {
    int tier;
    int n;              // tokens
    int n_places;       // n rounded up to a tile
    int64_t place;      // its first, in the head
    int64_t token;      // its first, among the tokens of its tier
    int64_t size;       // bytes of it all
    const uint8_t * k;  // codes
    const uint8_t * v;
    Params k_params, v_params;
};

inline int64_t n_blocks(const HeadView & view) {
    int64_t n = 0;
    for (int tier = 0; tier < view.f.n_tiers; ++tier) {
        n += evicts(view.f, tier) ? 0 : (view.table.counts[tier] + view.f.group - 1) / view.f.group;
    }
    return n;
}

inline Params find_params(const HeadView & view, const ggml_zipcache_side & side, bool is_key, int tier,
                          const uint8_t * in_block, int64_t place, int64_t n_places) {
    const auto & f = view.f;
    const auto & l = view.layout;
    const HeadUnits & units = *view.table.units;
    const uint8_t * data = in_block;
    int64_t n = tier_param_entries(f, side, tier, n_places);
    if (side.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
        const int sets = segment_sets(f, side);
        data = view.segment + (is_key ? l.k_params : l.v_params) + view.head * segment_param_bytes(f, side) +
               (sets > 1 ? tier : 0) * int64_t(f.head_dim) * entry_bytes(side.params);
        n = f.head_dim;
    } else if (spans_heads(f, side)) {
        data = view.segment + (is_key ? l.k_shared : l.v_shared) + place * int64_t(sizeof(Pair));
        n = n_places;
    }
    return params_of(side, tier, data, n, is_key ? units.k_range : units.v_range, is_key ? units.k_mid : units.v_mid);
}

// Calls visit(Block) for one of n_parts equal runs of the blocks of a head, in order. turn: which part gets the blocks
// that are left over.
template <class Visit>
void for_blocks(const HeadView & view, int part, int n_parts, int turn, Visit && visit) {
    const auto & f = view.f;
    const int64_t total = n_blocks(view);
    const int64_t begin = (total * part + turn % n_parts) / n_parts;
    const int64_t end = part + 1 == n_parts ? total : (total * (part + 1) + turn % n_parts) / n_parts;
    int64_t place = 0, number = 0;  // of the tier's first block
    for (int tier = 0; tier < f.n_tiers && number < end; ++tier) {
        const int64_t count = view.table.counts[tier];
        if (evicts(f, tier) || count == 0) {
            continue;
        }
        const uint8_t * start = view.segment + view.table.offsets[tier];
        const BlockLayout whole(f, tier, f.group);
        const int64_t n_blocks = (count + f.group - 1) / f.group;
        const int64_t last = std::min(n_blocks, end - number);
        for (int64_t i = std::max<int64_t>(0, (part == 0 ? 0 : begin) - number); i < last; ++i) {
            const int n = static_cast<int>(std::min<int64_t>(f.group, count - i * f.group));
            const int places = static_cast<int>(tile_places(n));
            const BlockLayout layout = n == f.group ? whole : BlockLayout(f, tier, places);
            const uint8_t * at = start + i * whole.size;
            const int64_t first = place + i * f.group;
            visit(Block{tier, n, places, first, i * f.group, layout.size, at, at + layout.v_codes,
                        find_params(view, f.k, true, tier, at + layout.k_params, first, places),
                        find_params(view, f.v, false, tier, at + layout.v_params, first, places)});
        }
        number += n_blocks;
        place += tier_places(f, tier, count);
    }
}

template <class Visit>
void for_blocks(const HeadView & view, Visit && visit) {
    for_blocks(view, 0, 1, 0, visit);
}

// Tokens of a head in the order of their tiers: for each tier, its tokens in time order.
inline std::vector<std::vector<uint32_t>> tier_tokens(const HeadView & view) {
    std::vector<std::vector<uint32_t>> tokens(view.f.n_tiers);
    const uint8_t * tags = view.tags();
    const int bits = tag_bits(view.f);
    for (uint32_t t = 0; t < header_of(view.segment).n_tokens; ++t) {
        tokens[tier_of(tags, bits, t)].push_back(t);
    }
    return tokens;
}

// Writes a segment's header, tables and tags, and zeros for the rest; returns its bytes. tier as in
// ggml_zipcache_rows. Defined in quantize_kv.cpp.
int64_t begin_segment(const ggml_zipcache_format & f, int64_t n_tokens, const uint8_t * tier, uint8_t * to);

// The rows of tokens [first, first + n) of a head as f32, before they are rounded to f16: k, v [n, head_dim];
// kept [n]: 0 where the token was evicted. Defined in dequantize_kv.cpp.
void dequantize_head(const ggml_zipcache_format & f, const uint8_t * segment, int kv_head, int64_t first, int64_t n,
                     const float * k_divisor, const float * v_divisor, float * k, float * v, uint8_t * kept);

}  // namespace zipcache::format

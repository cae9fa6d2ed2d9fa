#pragma once
// The table by which attend_kv finds the blocks of a layer of a sequence; index_kv writes it, all on the device.
//
//   IndexHeader
//   parts     [n_parts] Part: of each block of threads, where attend_kv has but this sequence
//   n_blocks  [n_kv_heads] u32
//   cost      [n_kv_heads] u32: of all blocks of a head, see block_cost
//   start     [n_kv_heads, kQuanta + 1] u32: the first block at or behind each of kQuanta equal shares of the cost
//   before    [n_kv_heads, max_segments + 1] Before: of all earlier segments
//   records   [max_segments, n_kv_heads] HeadRecord
//   blocks    [n_kv_heads, max_blocks] BlockRef
#include "cuda_layout.h"

namespace zipcache::cuda {

constexpr int kQuanta = 1024;

// What a block costs whatever its bytes is nearly all of it: a warp's instructions, not the memory, are what takes time
// (measured on an H100).
constexpr uint32_t block_cost(int64_t bytes) {
    return static_cast<uint32_t>(bytes) / 4 + 32768;
}

struct Before {
    uint32_t blocks, cost;
};

// Divisors and rotation: the space in which rows are stored.
struct Space {
    const float * divisor;  // [n_kv_heads, head_dim] or, in a HeadRecord, [head_dim]; NULL: ones
    int32_t rotate;
    int32_t same;  // of a header: all segments share it
};

struct IndexHeader {
    Space k, v;
    uint64_t records,
        blocks;  // offsets from the start of the index; what comes before follows from n_kv_heads and n_parts
    uint32_t max_segments, max_blocks;
};

// What one head of a segment has for all its blocks.
struct alignas(16) HeadRecord {
    Space k, v;
    const uint8_t * v_params;       // of scope `segment`: [n_sets] of [head_dim]
    const format::Pair * k_shared;  // [n_places]
    const uint16_t * position;      // [max_places] or NULL
    uint32_t first_seen, last_seen;
    format::HeadUnits units;
    uint8_t k_scope, k_kind, v_scope, v_kind;
    uint16_t k_block, v_block;  // channels that share a token's parameters, at most head_dim
    uint8_t k_shared_heads;
    float k_shrink[format::kMaxTiers], v_shrink[format::kMaxTiers];
};

struct BlockRef {
    const uint8_t * data;
    uint32_t place;  // its first, in the head
    uint16_t segment;
    uint8_t tier;
    uint8_t n;  // tokens
    // Bytes back from `data` to what lies elsewhere in the segment, or 0: parameters of its tier's channels of keys;
    // the values' parameters that all heads share.
    uint32_t k_channels, v_pairs;
    uint16_t v_codes, v_params, size;  // in units of kAlign
    uint8_t k_bits, v_bits;
};
static_assert(sizeof(BlockRef) == 32);

// A part of the layer: windows [first_window, last_window) of a KV head, as far as there are so many, and blocks
// [first_block, last_block).
struct Part {
    uint16_t head, part, n_parts, others;  // head n_kv_heads: none; else as a Share has them
    uint16_t first_window, last_window;
    uint32_t first_block, last_block;
};

struct IndexLayout {
    int64_t parts, n_blocks, cost, start, before, records, blocks, size;
};

constexpr IndexLayout index_layout(int n_kv_heads, int n_parts, int max_segments, int64_t max_blocks) {
    IndexLayout l = {};
    l.parts = align(sizeof(IndexHeader));
    l.n_blocks = align(l.parts + n_parts * int64_t(sizeof(Part)));
    l.cost = align(l.n_blocks + n_kv_heads * int64_t(sizeof(uint32_t)));
    l.start = align(l.cost + n_kv_heads * int64_t(sizeof(uint32_t)));
    l.before = align(l.start + n_kv_heads * int64_t(kQuanta + 1) * int64_t(sizeof(uint32_t)));
    l.records = align(l.before + n_kv_heads * int64_t(max_segments + 1) * int64_t(sizeof(Before)));
    l.blocks = align(l.records + int64_t(max_segments) * n_kv_heads * int64_t(sizeof(HeadRecord)));
    l.size = l.blocks + n_kv_heads * max_blocks * int64_t(sizeof(BlockRef));
    return l;
}

}  // namespace zipcache::cuda

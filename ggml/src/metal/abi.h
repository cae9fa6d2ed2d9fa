#pragma once
// What the host and the kernels say to each other: parameters of kernels, tables in buffers. Read by the C++ compiler
// and by Metal's, so nothing is included: uint64_t is there before. An address is one of device memory, or 0.
#include "lane_order.h"

namespace zipcache {
namespace metal_abi {

using Address = uint64_t;  // not `address`: Metal has one

enum : int {
    kMaxTiers = 12,
    kBlockSteps = 4,  // of 16 places, in the largest block
    kGroup = 64,      // tokens of the largest block
    kAlign = 32,
    kRows = 8,  // query heads that a pass takes: the rows of an 8 x 8 matrix
    kMagic = 0x4443495A,
    kMaxThreadgroupBytes = 32768,
};

// Threads of a threadgroup, of kernels that are not made for one SIMD-group.
enum : int {
    kFillThreads = 256,
    kFillWords = 16,  // of a thread
    kOrderThreads = 256,
    kPositionThreads = 256,
    kTagThreads = 128,
    kSharedThreads = 64,
    kIndexThreads = 128,
    kAppendThreads = 64,
    kMergeThreads = 128,
    kRankThreads = 256,
};

// ggml_zipcache_side, and what follows from it.
struct Side {
    int bits[kMaxTiers];
    float shrink[kMaxTiers];
    int scope, kind;  // ggml_zipcache_scope, ggml_zipcache_params
    int block;        // channels that share a token's parameters, at most head_dim
    int rotate;
    int spans_heads;  // parameters by token are those of all heads
    int n_sets;       // of parameters of scope segment
    int set_bytes;    // of one
    int entry_bytes;
};

// Offsets in a block of n places.
struct BlockPlaces {
    int k_params, v_codes, v_params, size;
};

// ggml_zipcache_format, and what follows from it: no kernel repeats cuda_layout.h.
struct Format {
    int n_kv_heads, head_dim, group, n_tiers, n_orders, tag_bits;
    int heads, head_bytes, tags;  // offsets from the start of a segment, of its tables
    int unused;
    Side k, v;
    BlockPlaces block[kMaxTiers][kBlockSteps];  // of 16, 32, 48, 64 places
};

// format::SegmentHeader, format::HeadUnits
struct SegmentHeader {
    uint32_t magic, n_tokens, n_bytes, n_places;
};

struct HeadUnits {
    float k_range, k_mid, v_range, v_mid;
};

// The bytes of a table: a multiple of 32.
constexpr uint64_t aligned(uint64_t n) {
    return (n + kAlign - 1) / kAlign * kAlign;
}

// ---- fill: n_words times the same ----

struct FillParams {
    Address to;
    uint64_t n_words;
    uint32_t word;
    uint32_t unused;
};

// ---- Places of tokens; dequantize_kv; quantize_kv ----

// Which token stands at which place. Tiers come from `tier` or, if that is 0, from the segment's tags.
struct OrderParams {
    Address format, tier, segment;
    Address counts;  // [n_orders, n_tiers] u32, written
    Address token;   // [n_orders, max_places] u32, written where a place is taken
    int n_tokens, max_places;
};

// Counts before each thread's run of tokens [kMaxTiers][kOrderThreads] u32, then totals [kMaxTiers] u32.
constexpr int order_threadgroup_bytes() {
    return (kOrderThreads + 1) * kMaxTiers * 4;
}

struct PositionParams {
    Address format, token, position;  // [n_orders, max_places] u32 -> [n_kv_heads, max_places] u16
    int max_places, unused;
};

struct ClearParams {
    Address k, v, kept;  // [n_kv_heads, stride, head_dim] f16; [n_kv_heads, n_tokens] u8 or 0
    int64_t stride;
    int n_tokens, head_dim;
};

struct RowsParams {
    Address format, segment;
    Address token, counts;
    Address k, v, k_divisor, v_divisor, kept;
    int64_t stride;
    int n_tokens, max_places;
};

// Rows of 16 places [16][head_dim + 1] f32, then parameters f32 x 2: of all channels, or of 16 places for each 32.
constexpr int row_bytes(int head_dim) {
    return lanes::kStep * (head_dim + 1) * 4;
}

constexpr int rows_threadgroup_bytes(int head_dim) {
    return row_bytes(head_dim) + head_dim * 8;
}

static_assert(rows_threadgroup_bytes(256) <= kMaxThreadgroupBytes, "dequantize_kv, quantize_kv");
static_assert(order_threadgroup_bytes() <= kMaxThreadgroupBytes, "order_tokens");

struct QuantizeParams {
    RowsParams rows;
    Address tier;
    Address widest;  // [2 sides, n_kv_heads, 2] u32: widest range and middle, as bits of floats
    Address whole;   // [2 sides, n_kv_heads, n_tiers, head_dim, 2] u32: ranges of scope segment
    Address shared;  // [2 sides, max_places, 2] u32: ranges of tokens over all heads
    uint64_t capacity;
};

// ---- attend_kv ----

struct Segment {
    Address format, data, k_divisor, v_divisor, position;
    int max_places, first_seen, last_seen, unused;
};

struct Sequence {
    Address k, v, n_tokens, index, probe_slot, probe_q, probe_log_sum;
    int64_t capacity;
};

// An index: IndexHeader; n_blocks [n_kv_heads] u32; before [n_kv_heads, max_segments + 1] u32, blocks of all earlier
// segments; run_end [n_kv_heads, max_segments] u32; records [max_segments, n_kv_heads] HeadRecord; blocks [n_kv_heads,
// max_blocks] BlockRef
struct IndexHeader {
    Address n_blocks, records, blocks;
    uint32_t max_blocks, unused;
};

// What one head of a segment has for all its blocks.
struct HeadRecord {
    Address k_divisor, v_divisor;  // [head_dim] or 0
    Address position;              // [max_places] u16 or 0
    uint32_t first_seen, last_seen;
    HeadUnits units;
    int k_rotate, v_rotate;
    int k_scope, k_kind, k_block, v_scope, v_kind, v_block;
    float k_shrink[kMaxTiers], v_shrink[kMaxTiers];
};

struct BlockRef {
    Address data;                // its K codes
    Address k_params, v_params;  // wherever they stand
    uint32_t place;              // its first, in the head
    uint32_t v_codes;            // from `data`
    uint32_t run_end;            // number of the first block whose keys are stored in another space
    uint16_t segment;
    uint8_t tier, n;  // n: tokens
    uint8_t k_bits, v_bits;
    uint16_t unused;
    uint32_t unused2;
};
static_assert(sizeof(BlockRef) == 48, "without gaps");

struct IndexParams {
    Address segments, n_segments;
    Address header, n_blocks, before, run_end, records, blocks;
    int n_kv_heads, head_dim, max_segments, max_blocks;
};

struct AppendParams {
    Address sequences, k, v;
    int n_kv_heads, head_dim;
};

struct AttendParams {
    Address sequences, q, out;
    Address partial;  // [n_sequences, n_kv_heads, n_passes, n_splits, kRows, head_dim + 2] f32: unnormalized output,
                      // then the logits' maximum, to base 2, and the sum
    int n_heads, n_kv_heads, n_passes, n_splits;
    int head_dim, sliding_window;
    float scale;
    int unused;
};

enum : int { kWindowTokens = 32 };  // of a unit of the window

// SIMD-groups of a threadgroup: as many as its memory holds.
constexpr int attend_simdgroups(int head_dim) {
    return head_dim >= 256 ? 2 : 4;
}

// Threadgroup memory of one SIMD-group: a tile of 16 places ([16][head_dim + 8] f16; as values [head_dim][16] f16; as
// output [8][head_dim] f32), logits [8][16] f32, probabilities [8][16] f16, two sets of parameters [head_dim] f32 x 2.
constexpr int attend_tile_bytes(int head_dim) {
    return 16 * (head_dim + 8) * 2;
}

constexpr int attend_simdgroup_bytes(int head_dim) {
    return attend_tile_bytes(head_dim) + 8 * 16 * 4 + 8 * 16 * 2 + 2 * head_dim * 8;
}

// All of them, then the queries [8][head_dim] f16, then maxima and sums [simdgroups][8] f32 each.
constexpr int attend_threadgroup_bytes(int head_dim) {
    return attend_simdgroups(head_dim) * (attend_simdgroup_bytes(head_dim) + 2 * 8 * 4) + 8 * head_dim * 2;
}

static_assert(attend_threadgroup_bytes(64) <= kMaxThreadgroupBytes, "attend_kv");
static_assert(attend_threadgroup_bytes(80) <= kMaxThreadgroupBytes, "attend_kv");
static_assert(attend_threadgroup_bytes(96) <= kMaxThreadgroupBytes, "attend_kv");
static_assert(attend_threadgroup_bytes(128) <= kMaxThreadgroupBytes, "attend_kv");
static_assert(attend_threadgroup_bytes(256) <= kMaxThreadgroupBytes, "attend_kv");

// ---- score_probes ----

enum : int {
    kScoreRows = 32,    // rows (query heads of probes) of a tile
    kScoreTokens = 32,  // tokens of a tile
};

struct ScoreParams {
    Address k, position, q, score, square;
    Address rows;     // [n_kv_heads, n_padded, head_dim] f16: the probes' query heads
    Address log_sum;  // [n_kv_heads, n_padded] f32, to base 2
    Address seen;     // [n_padded, 2] i32: tokens [x, y) that a row sees; none for padding
    int64_t k_stride;
    int n_heads, n_kv_heads, head_dim, sliding_window;
    int n_tokens, n_rows, n_padded;
    float scale;
};

// Keys [kScoreTokens][head_dim + 8] f16, then logits [kScoreRows][kScoreTokens] f32.
constexpr int score_tile_bytes(int head_dim) {
    return kScoreTokens * (head_dim + 8) * 2;
}

constexpr int score_threadgroup_bytes(int head_dim) {
    return score_tile_bytes(head_dim) + kScoreRows * kScoreTokens * 4;
}

static_assert(score_threadgroup_bytes(256) <= kMaxThreadgroupBytes, "score_probes");

constexpr int score_threads() {
    return kScoreRows / 8 * lanes::kLanes;
}

// ---- top_ratio ----

enum : int { kBins = 256 };

// Bins [kBins] u32, counts of SIMD-groups u32, the bits found and how many are left.
constexpr int rank_threadgroup_bytes() {
    return (kBins + kRankThreads / lanes::kLanes + 2) * 4;
}

struct RankParams {
    Address saliency, tier;
    int n, n_salient;
};

}  // namespace metal_abi
}  // namespace zipcache

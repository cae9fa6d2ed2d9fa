#pragma once
// ggml-zipcache: what this project adds to ggml. Plain C; every function is thread-safe on distinct outputs.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Instruction sets of the CPU kernels, for each architecture best last; each includes those before it. The environment
// variable ZIPCACHE_CPU (ref; avx2, avx512, vnni; neon, dotprod) lowers the choice; other names are ignored.
enum ggml_zipcache_cpu {
    GGML_ZIPCACHE_CPU_REF,  // portable
    // x86-64
    GGML_ZIPCACHE_CPU_AVX2,
    GGML_ZIPCACHE_CPU_AVX512,
    GGML_ZIPCACHE_CPU_VNNI,
    // AArch64
    GGML_ZIPCACHE_CPU_NEON,
    GGML_ZIPCACHE_CPU_DOTPROD,
};

enum ggml_zipcache_cpu ggml_zipcache_cpu_level(void);
const char * ggml_zipcache_cpu_name(enum ggml_zipcache_cpu level);

// ---- Segments: compressed tokens of one layer (byte layout: src/format.h) ----

enum {
    GGML_ZIPCACHE_GROUP = 64,      // most tokens of a block
    GGML_ZIPCACHE_TILE = 8,        // tokens that fill a vector; a block is padded to a multiple of it
    GGML_ZIPCACHE_MAX_TIERS = 12,  // different pairs of bits (of the key, of the value) in one segment
    GGML_ZIPCACHE_MAX_RANK = 16,   // of what approximates the error of a segment
};

// Which elements share their parameters.
enum ggml_zipcache_scope {
    GGML_ZIPCACHE_SCOPE_SEGMENT,  // a channel of a KV head, over the whole segment: channelwise
    GGML_ZIPCACHE_SCOPE_GROUP,    // a channel, over the tokens of a block: channel-groupwise
    GGML_ZIPCACHE_SCOPE_TOKEN,    // `block` channels of a token: tokenwise, groupwise
};

// How parameters are written. x' = scale * code + min for a code of b bits.
enum ggml_zipcache_params {
    GGML_ZIPCACHE_PARAMS_F16_PAIR,   // scale and min; of scope `segment` each tier has its own
    GGML_ZIPCACHE_PARAMS_F16_SCALE,  // scope token: scale; min = -2^(b-1) scale, as llama.cpp's q4_0 and q8_0
    GGML_ZIPCACHE_PARAMS_F8_PAIR,    // a range and its middle, 8 bits each, shared by all tiers:
                                     // scale = shrink * range / (2^b - 1), min = middle - shrink * range / 2
    GGML_ZIPCACHE_PARAMS_F8_SCALE,   // scope token: the same with middle = 0
};

// How keys, or values, are stored.
struct ggml_zipcache_side {
    int32_t bits[GGML_ZIPCACHE_MAX_TIERS];  // 0 to 8; a key of 0 bits is evicted, a value of 0 bits is zero; 16: f16
    float shrink[GGML_ZIPCACHE_MAX_TIERS];  // F8: the share of the range that a tier's codes span, 0 < shrink <= 1
    enum ggml_zipcache_scope scope;
    enum ggml_zipcache_params params;
    int32_t block;  // scope token: channels that share parameters: a divisor of head_dim, or all of the layer's
    bool rotate;    // stored as (x / divisor) H, H block-diagonal of normalized Walsh-Hadamard matrices of the largest
                    // power of two that divides head_dim
};

struct ggml_zipcache_format {
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t group;  // tokens of a block: a multiple of 8, at most 64
    int32_t n_tiers;
    bool same_order;  // all heads share the tiers of the tokens
    struct ggml_zipcache_side k, v;
};

// NULL, or what is wrong with it and what is accepted.
const char * ggml_zipcache_format_error(const struct ggml_zipcache_format * format);
// Whether the tokens of some tier are not kept.
bool ggml_zipcache_evicts(const struct ggml_zipcache_format * format);

// quantize_kv: rows to a segment. Codes are those of the paper's section 3.1: scale = (max - min) / (2^b - 1) over the
// elements that share it, code = clip(round((x - min) / scale), 0, 2^b - 1), with the parameters as they are stored.
struct ggml_zipcache_rows {
    int64_t n_tokens;
    int64_t stride;           // rows between KV heads
    const uint16_t * k;       // [n_kv_heads, stride, head_dim] f16
    const uint16_t * v;       // [n_kv_heads, stride, head_dim] f16
    const float * k_divisor;  // [n_kv_heads, head_dim], each > 0; NULL: ones
    const float * v_divisor;  // [n_kv_heads, head_dim]: CST's normalizer c
    const uint8_t * tier;     // [n_kv_heads, n_tokens], an index into bits; [1, n_tokens] for same_order
    const uint32_t * row;     // [n_tokens]: the row of each token, whatever for evicted ones; NULL: one after the other
};

size_t ggml_zipcache_segment_bytes(const struct ggml_zipcache_format * format, int64_t n_tokens, const uint8_t * tier);
// A block of one head: of n_tokens (0 to the format's group) tokens of a tier. The rest of a segment depends on the
// tiers only where parameters by token span the heads.
size_t ggml_zipcache_block_bytes(const struct ggml_zipcache_format * format, int tier, int64_t n_tokens);
// Writes all but the blocks of the heads; then the heads may be written in any order, from any thread.
void ggml_zipcache_quantize_kv_begin(const struct ggml_zipcache_format * format, const struct ggml_zipcache_rows * rows,
                                     uint8_t * to);
void ggml_zipcache_quantize_kv_head(const struct ggml_zipcache_format * format, const struct ggml_zipcache_rows * rows,
                                    int kv_head, uint8_t * to);

// NULL, or how the bytes differ from a segment of this format that has n_tokens tokens: for bytes from outside.
const char * ggml_zipcache_segment_error(const struct ggml_zipcache_format * format, int64_t n_tokens,
                                         const uint8_t * segment, size_t n_bytes);

// dequantize_kv: tokens [first, first + n) of one head of a segment as rows, divisors and rotation undone.
//   k, v  [n, head_dim] f16; evicted tokens are zeros
//   kept  [n] or NULL: 0 where the token was evicted
void ggml_zipcache_dequantize_kv(const struct ggml_zipcache_format * format, const uint8_t * segment, int kv_head,
                                 int64_t first, int64_t n, const float * k_divisor, const float * v_divisor,
                                 uint16_t * k, uint16_t * v, uint8_t * kept);

// x [n] <- x H, the matrix that `rotate` means. Its own inverse.
void ggml_zipcache_walsh_hadamard(float * x, int n);

// position [n_kv_heads, n_places]: the token, counted in the segment, at each place; UINT16_MAX at padding.
int64_t ggml_zipcache_segment_places(const struct ggml_zipcache_format * format, const uint8_t * segment);
void ggml_zipcache_segment_positions(const struct ggml_zipcache_format * format, const uint8_t * segment,
                                     uint16_t * position);

// ---- Corrections: what the codes of a segment lack, beside it (GEAR; byte layout: src/correction.h) ----
// For formats of one tier of codes that do not rotate, and rows without divisors.

// Outliers: of n elements that share parameters (a channel's of keys, over the tokens; a token's of values, over all
// heads) the round(share / 2 * n) largest and as many smallest. Copies the rows, with these drawn in to the range of
// the others: what is to be quantized.
//   share           0 to 0.5
//   k, v            [n_kv_heads, n_tokens, head_dim] f16
//   k_mark, v_mark  [n_kv_heads, n_tokens, head_dim]: 1 for an outlier, else 0
void ggml_zipcache_mark_outliers(const struct ggml_zipcache_format * format, const struct ggml_zipcache_rows * rows,
                                 float share, uint16_t * k, uint16_t * v, uint8_t * k_mark, uint8_t * v_mark);
// correct_kv: for each head and side the rank-r approximation of what the codes are off by, by power iteration, where
// there is no outlier; and the outliers. rows: as they were, one after the other, without divisors. Begin writes all
// but the heads, which may then be written in any order, from any thread.
size_t ggml_zipcache_correction_bytes(const struct ggml_zipcache_format * format, int64_t n_tokens, int rank,
                                      float share);
void ggml_zipcache_correct_kv_begin(const struct ggml_zipcache_format * format, int64_t n_tokens, int rank,
                                    const uint8_t * k_mark, const uint8_t * v_mark, uint8_t * to);
void ggml_zipcache_correct_kv_head(const struct ggml_zipcache_format * format, const struct ggml_zipcache_rows * rows,
                                   const uint8_t * segment, const uint8_t * k_mark, const uint8_t * v_mark, int kv_head,
                                   uint8_t * to);
// Adds it to dequantized rows: tokens [first, first + n) of a head, [n, head_dim] f16.
void ggml_zipcache_correct_rows(const struct ggml_zipcache_format * format, const uint8_t * correction, int kv_head,
                                int64_t first, int64_t n, uint16_t * k, uint16_t * v);
// NULL, or how the bytes differ from a correction of such a segment of n_tokens tokens: for bytes from outside.
const char * ggml_zipcache_correction_error(const struct ggml_zipcache_format * format, int64_t n_tokens,
                                            const uint8_t * correction, size_t n_bytes);

// ---- The cache of one layer, as attend_kv reads it: segments, and the newest tokens uncompressed ----

struct ggml_zipcache_segment {
    const struct ggml_zipcache_format * format;
    const uint8_t * data;
    const float * k_divisor;  // [n_kv_heads, head_dim] or NULL, as it was quantized with
    const float * v_divisor;
    // Where not all of its tokens are seen: their positions, and those seen, counted in the segment. Else NULL.
    const uint16_t * position;
    int64_t n_places;
    int64_t first_seen, last_seen;  // [first_seen, last_seen)
    const uint8_t * correction;     // of its codes, or NULL
};

struct ggml_zipcache_layer {
    int32_t n_heads;  // a multiple of n_kv_heads
    int32_t n_kv_heads;
    int32_t head_dim;
    float scale;             // multiplies q . k
    int32_t sliding_window;  // only the newest so many tokens of the window below are seen; 0: all
    int64_t capacity;        // tokens allocated in the window
    const uint16_t * k;      // [n_kv_heads, capacity, head_dim] f16: the window
    const uint16_t * v;      // [n_kv_heads, capacity, head_dim] f16
    int64_t n_segments;
    const struct ggml_zipcache_segment * segments;
    uint16_t * probe_q;     // [n_heads, head_dim] f16: where the node leaves its query; NULL: nowhere
    float * probe_log_sum;  // [n_heads]: and the log-sum-exp of its logits
};

// attend_kv: attention of one token's query heads over a layer's cache, split over tokens.
//   q         [n_heads, head_dim] f32
//   n_tokens  tokens in the window, the new one included; 1 <= n_tokens <= capacity
//   partial   [n_splits, n_heads, head_dim + 2] f32: unnormalized output, then its logit maximum and its sum
//   out       [n_heads, head_dim] f32
//   log_sum   [n_heads] f32, the log-sum-exp of each head's logits, or NULL
// A split covers an equal share of the visible tokens; an empty share writes maximum -inf and sum 0.
// The vector kernels round the query and the probabilities that meet packed codes to 8 bits: bench/attend_kv.py says
// what that adds. Keys with parameters by less than 8 channels are read by the reference only.
void ggml_zipcache_attend_kv(const struct ggml_zipcache_layer * layer, const float * q, int64_t n_tokens, int split,
                             int n_splits, float * partial);
void ggml_zipcache_attend_kv_merge(const struct ggml_zipcache_layer * layer, const float * partial, int n_splits,
                                   float * out, float * log_sum);
// The definition of correct: plain loops, double accumulation, one pass. out [n_heads, head_dim].
void ggml_zipcache_attend_kv_ref(const struct ggml_zipcache_layer * layer, const float * q, int64_t n_tokens,
                                 float * out);

// The same as nodes of a graph, for one new token of each of n_sequences: their keys and values are stored in the
// windows, at row n_tokens - 1, before the queries attend.
struct ggml_zipcache_new_tokens {
    struct ggml_tensor * q;         // [head_dim, n_heads, n_sequences] f32, each token's heads one after the other
    struct ggml_tensor * k;         // [head_dim, n_kv_heads, n_sequences] f32, each head's channels
    struct ggml_tensor * v;         // [head_dim, n_kv_heads, n_sequences] f32
    struct ggml_tensor * n_tokens;  // [n_sequences] i32, read when the nodes run, so that one graph serves every length
};
//   layers    [n_sequences], of one shape. They must outlive the graph; what they hold may change between runs
// Returns [head_dim * n_heads, n_sequences] f32.
struct ggml_tensor * ggml_zipcache_attend_kv_node(struct ggml_context * ctx,
                                                  const struct ggml_zipcache_layer * const * layers,
                                                  const struct ggml_zipcache_new_tokens * tokens, int n_splits);

// score_probes: how much attention some query rows (the probes) pay to each token (paper, section 4.2).
struct ggml_zipcache_probes {
    int32_t n_heads;  // a multiple of n_kv_heads
    int32_t n_kv_heads;
    int32_t head_dim;
    float scale;             // multiplies q . k
    int32_t sliding_window;  // a probe sees only the newest so many tokens; 0: all up to itself
    int64_t n_tokens;
    int64_t k_stride;          // rows between KV heads
    const uint16_t * k;        // [n_kv_heads, k_stride, head_dim] f16
    const int64_t * position;  // [n_probes]: the token that a probe is; it sees none behind it
    const float * q;           // [n_probes, n_heads, head_dim] f32
};
// Probes [first_probe, last_probe), the query heads of one KV head: score [n_tokens] += the sum of their attention
// probabilities, square [n_tokens] += that of their squares. Divided by the number of rows that see a token the score
// is the normalized saliency, as it is the accumulated one. Memory: a few rows of logits.
void ggml_zipcache_score_probes(const struct ggml_zipcache_probes * probes, int kv_head, int64_t first_probe,
                                int64_t last_probe, float * score, float * square);
void ggml_zipcache_score_probes_ref(const struct ggml_zipcache_probes * probes, int kv_head, int64_t first_probe,
                                    int64_t last_probe, float * score, float * square);

// mul_mat: the product of a weight matrix with many columns (prefill). ggml's own kernels round the columns to 8 bits
// and read the packed weight anew for each; this one unpacks the weight to f32 once for all columns.
struct ggml_zipcache_mul_mat_args {
    enum ggml_type type;     // of the weight
    const uint8_t * weight;  // [m, k] packed, one row each weight_stride bytes
    size_t weight_stride;
    int64_t k, m, n;
    const float * x;  // [n, k] f32, one column each x_stride floats
    int64_t x_stride;
    float * y;  // [n, m] f32, one column each y_stride floats
    int64_t y_stride;
};

// Whether mul_mat is the way to compute it here: a vector kernel, a type it reads, enough columns to pay.
bool ggml_zipcache_mul_mat_supported(enum ggml_type type, int64_t k, int64_t n);
// Rows [first_row, last_row) of the product.
void ggml_zipcache_mul_mat(const struct ggml_zipcache_mul_mat_args * args, int64_t first_row, int64_t last_row);
void ggml_zipcache_mul_mat_ref(const struct ggml_zipcache_mul_mat_args * args, int64_t first_row, int64_t last_row);

// The same as a node: weight [k, m] in its file's layout, x [k, n] f32 -> [m, n] f32.
struct ggml_tensor * ggml_zipcache_mul_mat_node(struct ggml_context * ctx, struct ggml_tensor * weight,
                                                struct ggml_tensor * x);

#ifdef __cplusplus
}
#endif

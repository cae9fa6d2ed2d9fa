#pragma once
// ggml-zipcache: what this project adds to ggml. Plain C; every function is thread-safe on distinct outputs.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Instruction sets of the CPU kernels, best last; each includes those before it. The environment variable ZIPCACHE_CPU
// (ref, avx2, avx512, vnni) lowers the choice; it never raises it above what the machine has.
enum ggml_zipcache_cpu {
    GGML_ZIPCACHE_CPU_REF,
    GGML_ZIPCACHE_CPU_AVX2,
    GGML_ZIPCACHE_CPU_AVX512,
    GGML_ZIPCACHE_CPU_VNNI,
};

enum ggml_zipcache_cpu ggml_zipcache_cpu_level(void);
const char * ggml_zipcache_cpu_name(enum ggml_zipcache_cpu level);

// The cache of one layer, as attend_kv reads it.
struct ggml_zipcache_layer {
    int32_t n_heads;  // a multiple of n_kv_heads
    int32_t n_kv_heads;
    int32_t head_dim;
    float scale;             // multiplies q . k
    int32_t sliding_window;  // only the newest so many tokens are seen; 0: all
    int64_t capacity;        // tokens allocated in the window
    const uint16_t * k;      // [n_kv_heads, capacity, head_dim] f16: the window
    const uint16_t * v;      // [n_kv_heads, capacity, head_dim] f16
};

// attend_kv: attention of one token's query heads over a layer's cache, split over tokens.
//   q         [n_heads, head_dim] f32
//   n_tokens  tokens in the cache, the new one included; 1 <= n_tokens <= capacity
//   partial   [n_splits, n_heads, head_dim + 2] f32: unnormalized output, then its logit maximum and its sum
//   out       [n_heads, head_dim] f32
// Split i covers an equal share of the visible tokens; an empty share writes maximum -inf and sum 0.
void ggml_zipcache_attend_kv(const struct ggml_zipcache_layer * layer, const float * q, int64_t n_tokens, int split,
                             int n_splits, float * partial);
void ggml_zipcache_attend_kv_merge(const struct ggml_zipcache_layer * layer, const float * partial, int n_splits,
                                   float * out);
// The definition of correct: plain loops, double accumulation, one pass.
void ggml_zipcache_attend_kv_ref(const struct ggml_zipcache_layer * layer, const float * q, int64_t n_tokens,
                                 float * out);

// The same as nodes of a graph. `layer` must outlive the graph.
//   q         [head_dim, n_heads] f32
//   k, v      results of the nodes that stored the new token's row (they order the nodes; data are read from `layer`)
//   n_tokens  [1] i32, read when the node runs, so that one graph serves every length
// Returns [head_dim * n_heads, 1] f32.
struct ggml_tensor * ggml_zipcache_attend_kv_node(struct ggml_context * ctx, const struct ggml_zipcache_layer * layer,
                                                  struct ggml_tensor * q, struct ggml_tensor * k,
                                                  struct ggml_tensor * v, struct ggml_tensor * n_tokens, int n_splits);

// ---- Segments: compressed tokens of one layer (byte layout: src/format.h) ----

enum {
    GGML_ZIPCACHE_GROUP = 64,     // consecutive tokens of one KV head that lie together
    GGML_ZIPCACHE_TILE = 8,       // tokens that fill a vector; a tier begins at a multiple of it
    GGML_ZIPCACHE_MAX_TIERS = 4,  // different numbers of bits in one segment, 0 (evicted) among them
};

// Which elements of one tier share a (min, scale) pair.
enum ggml_zipcache_scope {
    GGML_ZIPCACHE_SCOPE_SEGMENT,  // a channel of a KV head, over the whole segment: channelwise
    GGML_ZIPCACHE_SCOPE_GROUP,    // a channel, over the tokens of a group: channel-groupwise
    GGML_ZIPCACHE_SCOPE_TOKEN,    // `block` channels of a token: tokenwise, groupwise
};

// How keys, or values, are stored.
struct ggml_zipcache_side {
    int32_t n_tiers;
    int32_t bits[GGML_ZIPCACHE_MAX_TIERS];  // 0 to 8, falling
    enum ggml_zipcache_scope scope;
    int32_t block;  // scope token: channels that share a pair, a divisor of head_dim
    bool rotate;    // stored as (x / divisor) H, H the normalized Walsh-Hadamard matrix; head_dim a power of two
};

struct ggml_zipcache_format {
    int32_t n_kv_heads;
    int32_t head_dim;
    bool same_order;  // K and V share their tiers token by token; bits may differ
    struct ggml_zipcache_side k, v;
};

// NULL, or what is wrong with it and what is accepted.
const char * ggml_zipcache_format_error(const struct ggml_zipcache_format * format);

// quantize_kv: rows to a segment. Codes and pairs are those of the paper's section 3.1: scale = (max - min) / (2^b - 1)
// over the elements that share it, both rounded to f16, code = clip(round((x - min) / scale), 0, 2^b - 1).
struct ggml_zipcache_rows {
    int64_t n_tokens;
    int64_t stride;           // rows between KV heads
    const uint16_t * k;       // [n_kv_heads, stride, head_dim] f16
    const uint16_t * v;       // [n_kv_heads, stride, head_dim] f16
    const float * k_divisor;  // [n_kv_heads, head_dim], each > 0; NULL: ones
    const float * v_divisor;  // [n_kv_heads, head_dim]: CST's normalizer c
    const uint8_t * k_tier;   // [n_kv_heads, n_tokens], an index into bits
    const uint8_t * v_tier;   // the same; ignored for same_order
};

// Writes the segment to `to` and returns its bytes; NULL: only returns them.
size_t ggml_zipcache_quantize_kv(const struct ggml_zipcache_format * format, const struct ggml_zipcache_rows * rows,
                                 uint8_t * to);

// dequantize_kv: tokens [first, first + n) of a segment as rows, divisors and rotation undone. Evicted ones are zeros.
//   k, v  [n_kv_heads, stride, head_dim] f16
void ggml_zipcache_dequantize_kv(const struct ggml_zipcache_format * format, const uint8_t * segment, int64_t first,
                                 int64_t n, const float * k_divisor, const float * v_divisor, int64_t stride,
                                 uint16_t * k, uint16_t * v);

// attend_segment: attention of one token's query heads over groups [first_group, last_group) of a segment, read packed.
struct ggml_zipcache_segment {
    const struct ggml_zipcache_format * format;
    const uint8_t * data;
    const float * k_divisor;  // [n_kv_heads, head_dim] or NULL, as it was quantized with
    const float * v_divisor;
};
struct ggml_zipcache_queries {
    int32_t n_heads;  // a multiple of the format's n_kv_heads
    float scale;      // multiplies q . k
    const float * q;  // [n_heads, head_dim] f32
};
// Adds to partial [n_heads, head_dim + 2] f32: unnormalized output, then its logit maximum and its sum; as attend_kv's,
// so that ggml_zipcache_attend_kv_merge() joins both. Begin with zeros and a maximum of -inf.
// The vector kernels round the folded query and the folded probabilities to 8 bits: see bench/attend_kv.py for what
// that adds. Parameters by token that are shared by less than a head are read by the reference only.
void ggml_zipcache_attend_segment(const struct ggml_zipcache_segment * segment,
                                  const struct ggml_zipcache_queries * queries, int64_t first_group, int64_t last_group,
                                  float * partial);
void ggml_zipcache_attend_segment_ref(const struct ggml_zipcache_segment * segment,
                                      const struct ggml_zipcache_queries * queries, int64_t first_group,
                                      int64_t last_group, float * partial);

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
// probabilities. Divided by the number of rows that see a token it is the normalized saliency, as it is the
// accumulated one. Memory: a few rows of logits.
void ggml_zipcache_score_probes(const struct ggml_zipcache_probes * probes, int kv_head, int64_t first_probe,
                                int64_t last_probe, float * score);
void ggml_zipcache_score_probes_ref(const struct ggml_zipcache_probes * probes, int kv_head, int64_t first_probe,
                                    int64_t last_probe, float * score);

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

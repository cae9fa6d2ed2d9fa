#pragma once
// ggml-zipcache: what this project adds to ggml. Plain C; every function is thread-safe on distinct outputs.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

// Instruction sets of the CPU kernels, best last. The environment variable ZIPCACHE_CPU (ref, avx2, avx512) lowers
// the choice; it never raises it above what the machine has.
enum ggml_zipcache_cpu { GGML_ZIPCACHE_CPU_REF, GGML_ZIPCACHE_CPU_AVX2, GGML_ZIPCACHE_CPU_AVX512 };

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

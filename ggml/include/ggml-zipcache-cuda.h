#pragma once
// The ops of ggml-zipcache on CUDA devices. Plain C. A pointer marked "device" is to memory of the current device, one
// marked "host" to the caller's; structs passed by pointer are host memory unless said otherwise.
// Ops enqueue on `stream` (a cudaStream_t), allocate nothing and wait for nothing, so a CUDA graph can capture and
// replay them: lengths and the tables of segments are read from device memory when the kernels run, and no launch
// depends on them. An op returns NULL, or what is wrong and what is accepted; then nothing was enqueued.
#include "ggml-zipcache.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- Devices ----

int ggml_zipcache_cuda_n_devices(void);  // 0 in a build without CUDA and where there is no driver
// NULL, or why the kernels don't run on it.
const char * ggml_zipcache_cuda_device_error(int device);

// ---- Segments in device order (src/cuda_layout.h): the codes and parameters of src/format.h, in another order ----

// NULL, or why the kernels don't read it, although ggml_zipcache_format_error has nothing to say.
const char * ggml_zipcache_cuda_format_error(const struct ggml_zipcache_format * format);

// Whether keys have parameters by channels, and values by token for all channels, as the policies auto and zipcache
// have them: attend_kv is fastest then.
bool ggml_zipcache_cuda_is_common(const struct ggml_zipcache_format * format);

// counts [n_orders, n_tiers] host: tokens in each tier; n_orders is 1 for same_order, else n_kv_heads.
size_t ggml_zipcache_cuda_segment_bytes(const struct ggml_zipcache_format * format, int64_t n_tokens,
                                        const uint32_t * counts);
// The most bytes that n_tokens can take whatever their tiers, or, with bits > 0, whatever tiers keep
// 8 * ggml_zipcache_segment_bytes() within bits * 2 * n_kv_heads * head_dim * n_tokens, as policies' budgets do.
size_t ggml_zipcache_cuda_segment_bound(const struct ggml_zipcache_format * format, int64_t n_tokens, double bits);
// The most blocks of a head that n_tokens can take, and the most places.
int64_t ggml_zipcache_cuda_max_blocks(const struct ggml_zipcache_format * format, int64_t n_tokens);
int64_t ggml_zipcache_cuda_max_places(const struct ggml_zipcache_format * format, int64_t n_tokens);

// Between the two orders, all in host memory; for saved sessions and for tests. The bytes that each needs:
size_t ggml_zipcache_cuda_bytes_of_cpu(const struct ggml_zipcache_format * format, const uint8_t * cpu_segment);
size_t ggml_zipcache_cpu_bytes_of_cuda(const struct ggml_zipcache_format * format, const uint8_t * cuda_segment);
void ggml_zipcache_cuda_from_cpu(const struct ggml_zipcache_format * format, const uint8_t * cpu_segment, uint8_t * to);
void ggml_zipcache_cpu_from_cuda(const struct ggml_zipcache_format * format, const uint8_t * cuda_segment,
                                 uint8_t * to);
// NULL, or how the bytes differ from a segment in device order of this format that has n_tokens tokens.
const char * ggml_zipcache_cuda_segment_error(const struct ggml_zipcache_format * format, int64_t n_tokens,
                                              const uint8_t * cuda_segment, size_t n_bytes);

// quantize_kv: as on the CPU; every pointer in `rows` is a device one, the tiers too. Writes a whole segment, whose
// header (the first 16 bytes, four u32) holds magic, n_tokens, n_bytes, n_places. If n_bytes is above `capacity`, the
// magic is 0 and nothing but the header was written.
//   to  [capacity] device, 32-byte aligned
size_t ggml_zipcache_cuda_quantize_kv_workspace(const struct ggml_zipcache_format * format, int64_t n_tokens);
const char * ggml_zipcache_cuda_quantize_kv(const struct ggml_zipcache_format * format,
                                            const struct ggml_zipcache_rows * rows, uint8_t * to, size_t capacity,
                                            void * workspace, size_t workspace_bytes, void * stream);

// dequantize_kv: all tokens of a segment as rows, divisors and rotation undone.
struct ggml_zipcache_cuda_rows_out {
    int64_t n_tokens;         // of the segment
    int64_t stride;           // rows between KV heads
    const float * k_divisor;  // device [n_kv_heads, head_dim] or NULL
    const float * v_divisor;  // device [n_kv_heads, head_dim] or NULL
    uint16_t * k;             // device [n_kv_heads, stride, head_dim] f16; evicted tokens are zeros
    uint16_t * v;             // device [n_kv_heads, stride, head_dim] f16
    uint8_t * kept;           // device [n_kv_heads, n_tokens] or NULL: 0 where the token was evicted
};
size_t ggml_zipcache_cuda_dequantize_kv_workspace(const struct ggml_zipcache_format * format, int64_t n_tokens);
const char * ggml_zipcache_cuda_dequantize_kv(const struct ggml_zipcache_format * format, const uint8_t * segment,
                                              const struct ggml_zipcache_cuda_rows_out * rows, void * workspace,
                                              size_t workspace_bytes, void * stream);
// position [n_kv_heads, max_places] device: the token, counted in the segment, at each place; UINT16_MAX at padding.
// The workspace is dequantize_kv's; n_tokens is at most 65535.
const char * ggml_zipcache_cuda_positions(const struct ggml_zipcache_format * format, const uint8_t * segment,
                                          int64_t n_tokens, uint16_t * position, void * workspace,
                                          size_t workspace_bytes, void * stream);

// ---- attend_kv ----

// A segment of a layer of a sequence; lies in device memory, as does all it points to.
struct ggml_zipcache_cuda_segment {
    const struct ggml_zipcache_format * format;  // device copy
    const uint8_t * data;
    const float * k_divisor;  // [n_kv_heads, head_dim] or NULL, as it was quantized with
    const float * v_divisor;
    const uint16_t * position;      // [n_kv_heads, max_places] where not all of its tokens are seen, else NULL
    int64_t max_places;             // row length of `position`
    int64_t first_seen, last_seen;  // [first_seen, last_seen), read where `position` is given
};

// A layer of a sequence; lies in device memory, as does all it points to.
struct ggml_zipcache_cuda_sequence {
    const uint16_t * k;          // [n_kv_heads, capacity, head_dim] f16: the window
    const uint16_t * v;          // [n_kv_heads, capacity, head_dim] f16
    int64_t capacity;            // tokens allocated in the window
    const int32_t * n_tokens;    // [1]: in the window, the new one included; 0: the sequence is idle, its out is 0
    const uint8_t * index;       // written by index_kv; NULL: no segments
    const int32_t * probe_slot;  // [capacity]: where the query of a token of the window is left; below 0: nowhere.
                                 // NULL: nowhere
    uint16_t * probe_q;          // [n_slots, n_heads, head_dim] f16
    float * probe_log_sum;       // [n_slots, n_heads]: log-sum-exp of the logits
};

// index_kv: the table by which attend_kv finds blocks, of one layer of one sequence. Run it whenever the segments or
// what is seen of them changed, never per token.
struct ggml_zipcache_cuda_index_args {
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t max_segments;     // at most 65535
    int64_t max_blocks;       // a head's, of all segments: the sum of ggml_zipcache_cuda_max_blocks
    int64_t window_capacity;  // of the sequence
    const struct ggml_zipcache_cuda_segment * segments;  // device [max_segments]
    const int32_t * n_segments;                          // device [1]
};
size_t ggml_zipcache_cuda_index_bytes(int32_t n_kv_heads, int32_t max_segments, int64_t max_blocks);
const char * ggml_zipcache_cuda_index_kv(const struct ggml_zipcache_cuda_index_args * args, uint8_t * index,
                                         void * stream);

// RoPE: channels c and c' of a head turn together by position * base^(-2 i / n_dims) * frequency_scale / factors[i],
// times attention_factor, for i below n_dims / 2. The channels from n_dims on stay as they are.
struct ggml_zipcache_cuda_rope {
    const int32_t * position;  // device [n_sequences]
    const float * factors;     // device [n_dims / 2] or NULL: ones
    int32_t n_dims;            // even, 2 to head_dim
    bool halves;               // c and c' are i and i + n_dims / 2, else 2 i and 2 i + 1
    float base, frequency_scale, attention_factor;
};

// A new token of each sequence; strides in floats from one to the next.
struct ggml_zipcache_cuda_new_tokens {
    const float * k;  // device [n_sequences, n_kv_heads, head_dim] f32
    const float * v;  // device [n_sequences, n_kv_heads, head_dim] f32
    int64_t k_stride, v_stride;
    const struct ggml_zipcache_cuda_rope * rope;  // host; NULL: keys have turned, and queries are not looked at
    const float * q;                              // device [n_sequences, n_heads, head_dim] f32
    int64_t q_stride;
    float * turned_q;  // device [n_sequences, n_heads, head_dim] f32: the queries turned, for attend_kv
};

// append_kv: stores each sequence's new token at row n_tokens - 1 of its window, and turns it by its position if asked.
// attend_kv: attention of one new token of each sequence over its layer's cache. Codes are read packed; query and
// probabilities meet them as 16-bit integers.
struct ggml_zipcache_cuda_attend_args {
    int32_t n_sequences;
    int32_t n_heads;  // a multiple of n_kv_heads, at most 16 times
    int32_t n_kv_heads;
    int32_t head_dim;        // 64, 80, 96, 128, 256
    float scale;             // multiplies q . k
    int32_t sliding_window;  // only the newest so many tokens of the window are seen; 0: all
    // Set where a segment's format is not ggml_zipcache_cuda_is_common(), or where segments of one sequence differ in
    // k_divisor or k.rotate: a slower kernel. Not set then, the output is NaN or wrong.
    bool any_format;
    const struct ggml_zipcache_cuda_sequence * sequences;  // device [n_sequences]
    const float * q;                                       // device [n_sequences, n_heads, head_dim] f32
    float * out;                                           // device [n_sequences, n_heads, head_dim] f32
};
const char * ggml_zipcache_cuda_append_kv(const struct ggml_zipcache_cuda_attend_args * args,
                                          const struct ggml_zipcache_cuda_new_tokens * tokens, void * stream);
// The workspace holds zeros before its first use and is left ready for the next; one serves all layers of a stream.
size_t ggml_zipcache_cuda_attend_kv_workspace(const struct ggml_zipcache_cuda_attend_args * args);
const char * ggml_zipcache_cuda_attend_kv(const struct ggml_zipcache_cuda_attend_args * args, void * workspace,
                                          size_t workspace_bytes, void * stream);

// ---- score_probes: every pointer in `probes` is a device one ----

//   n_probes  rows in probes->q and probes->position
//   score, square  device [n_kv_heads, n_tokens] f32: += the sums of the probabilities and of their squares
struct ggml_zipcache_cuda_scores {
    int64_t n_probes;
    float * score;
    float * square;
};
size_t ggml_zipcache_cuda_score_probes_workspace(const struct ggml_zipcache_probes * probes, int64_t n_probes);
const char * ggml_zipcache_cuda_score_probes(const struct ggml_zipcache_probes * probes,
                                             const struct ggml_zipcache_cuda_scores * scores, void * workspace,
                                             size_t workspace_bytes, void * stream);

#ifdef __cplusplus
}
#endif

#pragma once
// The ops of ggml-zipcache on Apple GPUs, up to the encoder: plain C++ that any platform builds. An op checks its
// arguments and hands out, in order, the kernels to dispatch; who encodes them (on Apple systems a compute command
// encoder, in tests an emulator) adds nothing but the call:
//
//   [encoder setComputePipelineState: of dispatch->kernel]
//   [encoder setBytes: dispatch->params length: dispatch->params_bytes atIndex: 0]
//   [encoder setThreadgroupMemoryLength: dispatch->threadgroup_bytes atIndex: 0]
//   [encoder dispatchThreadgroups: dispatch->groups threadsPerThreadgroup: {dispatch->threads, 1, 1}]
//
// A kernel reads what the dispatches before it wrote: encode them into encoders of the serial type. Buffers are passed
// as 64-bit addresses inside the parameters and inside tables in buffers (Metal 3, macOS 13), so the encoder must hear
// of them otherwise: useResource, useHeap or a residency set. Lengths and tables of segments are read when the kernels
// run, and no dispatch depends on them.
//
// Pipelines: ggml_zipcache_metal_kernel() names them all; each is one function of the Metal library that is built of
// src/metal/*.metal and src/ops/*/*.metal (Metal 3, GPUs of family Apple7: M1, A14). Build it without fast math: the
// kernels count on infinities, and a segment must not depend on how quantize_kv's divisions round. src/metal/README.md
// says what the kernels cost, and how far they have been run.
#include "ggml-zipcache.h"

#ifdef __cplusplus
extern "C" {
#endif

// MTLBuffer.gpuAddress plus an offset; 0: none. "[...]" at an address is the shape of what lies there.
typedef uint64_t ggml_zipcache_metal_address;

struct ggml_zipcache_metal_dispatch {
    const char * kernel;
    const void * params;  // to be copied before the call returns
    size_t params_bytes;  // at most 4096, as setBytes takes
    uint32_t groups[3];   // threadgroups
    uint32_t threads;     // of a threadgroup: a multiple of 32
    uint32_t threadgroup_bytes;
};

// Who encodes.
struct ggml_zipcache_metal_encoder {
    void (*encode)(void * self, const struct ggml_zipcache_metal_dispatch * dispatch);
    void * self;
};

int ggml_zipcache_metal_n_kernels(void);
const char * ggml_zipcache_metal_kernel(int i);

// Every op below returns NULL, or what is wrong and what is accepted; then nothing was handed out.

// ---- Segments: in device order, as the CUDA kernels read them. What the host does with them (sizes, bounds, the way
// to and from the CPU's order, checks) are the functions of ggml-zipcache-cuda.h that need no device. ----

// What kernels know of a format. Written once per format into a buffer, on the host.
size_t ggml_zipcache_metal_format_bytes(void);
// NULL, or why the kernels don't read it.
const char * ggml_zipcache_metal_write_format(const struct ggml_zipcache_format * format, void * to);

// quantize_kv: rows to a segment, as on the CPU. The first 16 bytes of a segment, four u32, are: magic, n_tokens,
// n_bytes, n_places. If n_bytes is above `capacity`, the magic is 0 and the rest zeros.
struct ggml_zipcache_metal_rows {
    ggml_zipcache_metal_address format;  // as written by ggml_zipcache_metal_write_format()
    int64_t n_tokens;
    int64_t stride;                         // rows between KV heads
    ggml_zipcache_metal_address k;          // [n_kv_heads, stride, head_dim] f16, 16-byte aligned
    ggml_zipcache_metal_address v;          // [n_kv_heads, stride, head_dim] f16, 16-byte aligned
    ggml_zipcache_metal_address k_divisor;  // [n_kv_heads, head_dim] f32 or 0
    ggml_zipcache_metal_address v_divisor;  // [n_kv_heads, head_dim] f32 or 0
    ggml_zipcache_metal_address tier;       // quantize_kv: [n_orders, n_tokens] u8
    ggml_zipcache_metal_address kept;       // dequantize_kv: [n_kv_heads, n_tokens] u8 or 0; 0 where it was evicted
};
size_t ggml_zipcache_metal_quantize_kv_workspace(const struct ggml_zipcache_format * format, int64_t n_tokens);
//   to         [capacity] bytes, 32-byte aligned; capacity a multiple of 4
//   workspace  of as many bytes as the function above says, 32-byte aligned
const char * ggml_zipcache_metal_quantize_kv(const struct ggml_zipcache_format * format,
                                             const struct ggml_zipcache_metal_rows * rows,
                                             ggml_zipcache_metal_address to, size_t capacity,
                                             ggml_zipcache_metal_address workspace,
                                             const struct ggml_zipcache_metal_encoder * encoder);

// dequantize_kv: all tokens of a segment as rows, divisors and rotation undone; evicted tokens are zeros.
size_t ggml_zipcache_metal_dequantize_kv_workspace(const struct ggml_zipcache_format * format, int64_t n_tokens);
const char * ggml_zipcache_metal_dequantize_kv(const struct ggml_zipcache_format * format,
                                               const struct ggml_zipcache_metal_rows * rows,
                                               ggml_zipcache_metal_address segment,
                                               ggml_zipcache_metal_address workspace,
                                               const struct ggml_zipcache_metal_encoder * encoder);
// position [n_kv_heads, ggml_zipcache_cuda_max_places()] u16: the token at each place; UINT16_MAX at padding. Of `rows`
// only format and n_tokens (at most 65535) are read; the workspace is dequantize_kv's.
const char * ggml_zipcache_metal_positions(const struct ggml_zipcache_format * format,
                                           const struct ggml_zipcache_metal_rows * rows,
                                           ggml_zipcache_metal_address segment, ggml_zipcache_metal_address position,
                                           ggml_zipcache_metal_address workspace,
                                           const struct ggml_zipcache_metal_encoder * encoder);

// ---- attend_kv ----

// A segment of a layer of a sequence, in a buffer.
struct ggml_zipcache_metal_segment {
    ggml_zipcache_metal_address format;
    ggml_zipcache_metal_address data;
    ggml_zipcache_metal_address k_divisor;  // [n_kv_heads, head_dim] f32 or 0, as it was quantized with
    ggml_zipcache_metal_address v_divisor;
    ggml_zipcache_metal_address position;  // [n_kv_heads, max_places] u16 where not all of its tokens are seen, else 0
    int32_t max_places;                    // row length of `position`
    int32_t first_seen, last_seen;         // [first_seen, last_seen), read where `position` is given
    int32_t unused;
};

// A layer of a sequence, in a buffer.
struct ggml_zipcache_metal_sequence {
    ggml_zipcache_metal_address k;              // [n_kv_heads, capacity, head_dim] f16: the window, 16-byte aligned
    ggml_zipcache_metal_address v;              // [n_kv_heads, capacity, head_dim] f16
    ggml_zipcache_metal_address n_tokens;       // [1] i32: in the window, the new one included; 0: idle, its out is 0
    ggml_zipcache_metal_address index;          // written by index_kv; 0: no segments
    ggml_zipcache_metal_address probe_slot;     // [capacity] i32: where the query of a token of the window is left;
                                                // below 0: nowhere. 0: nowhere
    ggml_zipcache_metal_address probe_q;        // [n_slots, n_heads, head_dim] f16
    ggml_zipcache_metal_address probe_log_sum;  // [n_slots, n_heads] f32: log-sum-exp of the logits
    int64_t capacity;                           // tokens allocated in the window
};

// index_kv: the table by which attend_kv finds blocks, of one layer of one sequence. Run it whenever the segments or
// what is seen of them changed, never per token.
struct ggml_zipcache_metal_index_args {
    int32_t n_kv_heads;
    int32_t head_dim;
    int32_t max_segments;                    // at most 65535
    int32_t max_blocks;                      // a head's, of all segments: the sum of ggml_zipcache_cuda_max_blocks
    ggml_zipcache_metal_address segments;    // [max_segments] ggml_zipcache_metal_segment
    ggml_zipcache_metal_address n_segments;  // [1] i32
    ggml_zipcache_metal_address index;       // 32-byte aligned
};
size_t ggml_zipcache_metal_index_bytes(int32_t n_kv_heads, int32_t max_segments, int32_t max_blocks);
const char * ggml_zipcache_metal_index_kv(const struct ggml_zipcache_metal_index_args * args,
                                          const struct ggml_zipcache_metal_encoder * encoder);

// append_kv: stores each sequence's new token at row n_tokens - 1 of its window.
//   k, v  [n_sequences, n_kv_heads, head_dim] f32
// attend_kv: attention of one new token of each sequence over its layer's cache. Codes are read packed; keys, values,
// query and probabilities are multiplied as f16 with f32 sums.
struct ggml_zipcache_metal_attend_args {
    int32_t n_sequences;
    int32_t n_heads;  // a multiple of n_kv_heads, at most 16 times
    int32_t n_kv_heads;
    int32_t head_dim;                       // 64, 80, 96, 128, 256
    float scale;                            // multiplies q . k
    int32_t sliding_window;                 // only the newest so many tokens of the window are seen; 0: all
    int32_t n_groups;                       // threadgroups wanted: about four for each core of the GPU
    ggml_zipcache_metal_address sequences;  // [n_sequences] ggml_zipcache_metal_sequence
    ggml_zipcache_metal_address q;          // [n_sequences, n_heads, head_dim] f32
    ggml_zipcache_metal_address out;        // [n_sequences, n_heads, head_dim] f32
};
const char * ggml_zipcache_metal_append_kv(const struct ggml_zipcache_metal_attend_args * args,
                                           ggml_zipcache_metal_address k, ggml_zipcache_metal_address v,
                                           const struct ggml_zipcache_metal_encoder * encoder);
// The workspace's contents don't matter; one serves all layers of a stream.
size_t ggml_zipcache_metal_attend_kv_workspace(const struct ggml_zipcache_metal_attend_args * args);
const char * ggml_zipcache_metal_attend_kv(const struct ggml_zipcache_metal_attend_args * args,
                                           ggml_zipcache_metal_address workspace,
                                           const struct ggml_zipcache_metal_encoder * encoder);

// ---- score_probes ----

struct ggml_zipcache_metal_probes {
    int32_t n_heads;  // a multiple of n_kv_heads
    int32_t n_kv_heads;
    int32_t head_dim;
    float scale;             // multiplies q . k
    int32_t sliding_window;  // a probe sees only the newest so many tokens; 0: all up to itself
    int32_t n_probes;
    int64_t n_tokens;
    int64_t k_stride;                      // rows between KV heads
    ggml_zipcache_metal_address k;         // [n_kv_heads, k_stride, head_dim] f16, 16-byte aligned
    ggml_zipcache_metal_address position;  // [n_probes] i64: the token that a probe is; it sees none behind it
    ggml_zipcache_metal_address q;         // [n_probes, n_heads, head_dim] f32
    ggml_zipcache_metal_address score;     // [n_kv_heads, n_tokens] f32: += the sums of the probabilities
    ggml_zipcache_metal_address square;    // [n_kv_heads, n_tokens] f32: += those of their squares
};
size_t ggml_zipcache_metal_score_probes_workspace(const struct ggml_zipcache_metal_probes * probes);
const char * ggml_zipcache_metal_score_probes(const struct ggml_zipcache_metal_probes * probes,
                                              ggml_zipcache_metal_address workspace,
                                              const struct ggml_zipcache_metal_encoder * encoder);

// ---- top_ratio: tier 0 for the n_salient most salient of each ranking, tier 1 for the rest; the older one first among
// equals. (The other ways to tiers are the host's: it shares the GPU's memory.) ----

struct ggml_zipcache_metal_ranking {
    int32_t n_ranks;
    int32_t n;
    int32_t n_salient;
    ggml_zipcache_metal_address saliency;  // [n_ranks, n] f32, none below 0
    ggml_zipcache_metal_address tier;      // [n_ranks, n] u8
};
const char * ggml_zipcache_metal_top_ratio(const struct ggml_zipcache_metal_ranking * ranking,
                                           const struct ggml_zipcache_metal_encoder * encoder);

#ifdef __cplusplus
}
#endif

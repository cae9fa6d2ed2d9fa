#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace zipcache::cuda {

// What kv/saliency.cpp does, on the device. Every pointer is a device one.

// Queries of decode steps, which saw more than the rows at hand.
struct KnownProbes {
    int32_t n;
    const int64_t * row;    // [n] rising: the row that each is
    const int32_t * slot;   // [n]: where its query lies
    const uint16_t * q;     // [n_slots, n_heads, head_dim] f16
    const float * log_sum;  // [n_slots, n_heads]
};

struct KeyRows {
    int32_t n_heads, n_kv_heads, head_dim;
    int32_t sliding_window;  // 0: a row sees all before it
    float scale;             // multiplies q . k
    int64_t n, stride;
    const uint16_t * k;  // [n_kv_heads, stride, head_dim] f16
};

// score, square [n_kv_heads, n]: sums over the probes and the heads of a group, of probabilities and of their squares
void score_known(const KeyRows & rows, const KnownProbes & probes, float * score, float * square, cudaStream_t stream);

// q [n, width] f32 <- slot_q [n_slots, width] f16
void gather_queries(const uint16_t * slot_q, const int32_t * slot, int64_t n, int64_t width, float * q,
                    cudaStream_t stream);

// seen [n]: how many of the probes see row first + t
void count_seen(const int64_t * row, int32_t n_probes, int32_t sliding_window, int64_t first, int64_t n, float * seen,
                cudaStream_t stream);

// saliency [n_ranks, n] of rows [first, first + n) from score [n_kv_heads, n_rows]; n_ranks is 1 or n_kv_heads
struct SaliencyArgs {
    int32_t n_kv_heads, n_ranks;
    bool normalized;
    int64_t n_rows, first, n;
    const float * score;
    const float * seen;
};
void saliency(const SaliencyArgs & args, float * saliency, cudaStream_t stream);

}  // namespace zipcache::cuda

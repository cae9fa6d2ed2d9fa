#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/scores.h"

namespace zipcache::cuda {

// What kv/balance.cpp does, on the device. Every pointer is a device one.
struct BalanceArgs {
    KeyRows rows;        // all at hand
    const uint16_t * v;  // [n_kv_heads, stride, head_dim] f16
    int64_t first, n;    // those that are compressed
    int32_t n_probes;
    const int64_t * probe_row;  // [n_probes]
    const float * probe_q;      // [n_probes, n_heads, head_dim]
    const float * square;       // [n_kv_heads, rows.n]: of the scores
    const float * seen;         // [n]
    const float * norms;        // [n_heads * head_dim]: squared column norms of the output projection
};

struct BalanceOut {
    float * k_divisor;  // [n_kv_heads, head_dim]
    float * v_divisor;  // [n_kv_heads, head_dim]
    float * k_weight;   // [n_kv_heads]
    float * v_weight;   // [n_kv_heads]
};

size_t balance_workspace(const BalanceArgs & args);  // bytes
void balance(const BalanceArgs & args, const BalanceOut & out, void * workspace, cudaStream_t stream);

// CST's normalizer: sqrt(max |v_c|) of rows [first, first + n). out [n_kv_heads, head_dim], zeros before
void normalizer(const KeyRows & rows, const uint16_t * v, int64_t first, int64_t n, float * out, cudaStream_t stream);

}  // namespace zipcache::cuda

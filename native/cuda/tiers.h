#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/scores.h"
#include "ggml-zipcache.h"

namespace zipcache::cuda {

// How tokens get their tiers: what kv/compress.cpp and kv/water_fill.cpp do, on the device. Every pointer is a device
// one.

// Tier 0 for the n_salient most salient of each ranking, tier 1 for the rest; the older one first among equals.
//   saliency [n_ranks, n], none below 0; tier [n_ranks, n]
void top_ratio(const float * saliency, int32_t n_ranks, int64_t n, int64_t n_salient, uint8_t * tier,
               cudaStream_t stream);

// What it costs to store each token's key and value coarsely.
struct CostArgs {
    KeyRows rows;
    const uint16_t * v;       // [n_kv_heads, stride, head_dim] f16
    int64_t first, n;         // rows that are stored
    const float * k_divisor;  // [n_kv_heads, head_dim]
    const float * v_divisor;
    const float * k_weight;  // [n_kv_heads]
    const float * v_weight;
    int32_t n_ranks;         // 1 or n_kv_heads
    const float * saliency;  // [n_ranks, n]
    double * mean;           // [1], written: of the saliency
};
// k_cost, v_cost [n_kv_heads, n]
void costs(const CostArgs & args, float * k_cost, float * v_cost, cudaStream_t stream);

// A segment's size by how many tokens of each head a tier has (ggml/src/format.h).
struct SegmentSizes {
    static constexpr int kMostRests = GGML_ZIPCACHE_GROUP / GGML_ZIPCACHE_TILE + 1;
    int64_t fixed;  // bytes that do not depend on it
    int32_t group;  // tokens of a block
    int32_t n_tiers;
    int32_t block[GGML_ZIPCACHE_MAX_TIERS][kMostRests];  // bytes of a block of so many tiles
    float k_error[GGML_ZIPCACHE_MAX_TIERS];              // mean squared error of a code, in squared ranges
    float v_error[GGML_ZIPCACHE_MAX_TIERS];
    float bits[GGML_ZIPCACHE_MAX_TIERS];  // of key and value
};

// Tiers as water_fill() of kv/water_fill.h chooses them: tier [n_kv_heads, n]. The workspace holds zeros.
size_t water_fill_workspace(const SegmentSizes & sizes, int32_t n_kv_heads);
void water_fill(const SegmentSizes & sizes, int32_t n_kv_heads, int64_t n, const float * k_cost, const float * v_cost,
                double most_bytes, uint8_t * tier, void * workspace, cudaStream_t stream);

}  // namespace zipcache::cuda

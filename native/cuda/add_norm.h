#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

struct ggml_cgraph;

namespace zipcache::cuda {

// x + y, its RMS norm and the norm's weights in one kernel: three nodes of a decode step that take longer to start than
// to compute.
struct AddNorm {
    int64_t n, n_rows;  // n a multiple of 4, at most kMostAddNorm
    float eps;
    const float4 *x, *y;    // [n_rows, n] f32
    const float4 * weight;  // [n] f32
    float4 * sum;           // [n_rows, n] f32; may be x or y
    float4 * out;           // [n_rows, n] f32; may be x or y, or, of one row, overlap them
};

constexpr int64_t kMostAddNorm = 16384;

void add_norm(const AddNorm & args, cudaStream_t stream);

constexpr int kAddNormNodes = 3;

// Whether nodes i, i + 1 and i + 2 of a graph are that; then what they are in `args`.
bool is_add_norm(const ggml_cgraph * graph, int i, AddNorm & args);

}  // namespace zipcache::cuda

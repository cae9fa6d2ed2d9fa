#include "cuda/add_norm.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 1024, kHeld = 4;  // float4 of a row that a thread holds
static_assert(4 * kThreads * kHeld == kMostAddNorm);

// One block for each row. sum and out may be where x or y are: all of the row is read before out is written.
__global__ void __launch_bounds__(kThreads) add_and_norm(const float4 * x, const float4 * y, const float4 * weight,
                                                         float4 * sum, float4 * out, int n, float eps) {
    __shared__ float parts[kThreads / 32];
    const int64_t row = int64_t(blockIdx.x) * n;
    float4 held[kHeld];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
        const int i = k * kThreads + int(threadIdx.x);
        if (i < n) {
            const float4 a = x[row + i], b = y[row + i];
            held[k] = {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
            sum[row + i] = held[k];
            squares += held[k].x * held[k].x + held[k].y * held[k].y + held[k].z * held[k].z + held[k].w * held[k].w;
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        squares += __shfl_xor_sync(~0u, squares, step);
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = squares;
    }
    __syncthreads();
    float total = parts[threadIdx.x % 32];
    for (int step = 16; step > 0; step /= 2) {
        total += __shfl_xor_sync(~0u, total, step);
    }
    const float scale = rsqrtf(total / float(4 * n) + eps);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) {
        const int i = k * kThreads + int(threadIdx.x);
        if (i < n) {
            const float4 w = weight[i], v = held[k];
            out[row + i] = {scale * v.x * w.x, scale * v.y * w.y, scale * v.z * w.z, scale * v.w * w.w};
        }
    }
}

}  // namespace

void add_norm(const AddNorm & a, cudaStream_t stream) {
    add_and_norm<<<unsigned(a.n_rows), kThreads, 0, stream>>>(a.x, a.y, a.weight, a.sum, a.out, int(a.n / 4), a.eps);
}

}  // namespace zipcache::cuda

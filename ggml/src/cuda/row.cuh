#pragma once
#include "cuda_layout.h"

namespace zipcache::cuda {

// A row that a warp holds: channel 32 i + lane at [i].
template <int D>
using Row = float[(D + kLanes - 1) / kLanes];

// Over a warp, or over its lanes that are alike below First.
template <int First = 1>
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = First; step < kLanes; step *= 2) {
        x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    }
    return x;
}

template <int First = 1>
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = First; step < kLanes; step *= 2) {
        x += __shfl_xor_sync(~0u, x, step);
    }
    return x;
}

// x <- x H, as transform.h defines it.
template <int D>
__device__ __forceinline__ void warp_hadamard(Row<D> & x, int lane) {
    constexpr int kSize = D & -D, kN = (D + kLanes - 1) / kLanes;
#pragma unroll
    for (int half = 1; half < kSize && half < kLanes; half *= 2) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            const float other = __shfl_xor_sync(~0u, x[i], half);
            x[i] = lane & half ? other - x[i] : x[i] + other;
        }
    }
#pragma unroll
    for (int half = 1; half * kLanes < kSize; half *= 2) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            if (!(i & half)) {
                const float a = x[i], b = x[i | half];
                x[i] = a + b;
                x[i | half] = a - b;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
        x[i] *= 1.0f / sqrtf(float(kSize));
    }
}

}  // namespace zipcache::cuda

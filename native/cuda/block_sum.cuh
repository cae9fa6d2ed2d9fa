#pragma once

namespace zipcache::cuda {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

template <class T, class Combine>
__device__ T warp_all(T x, Combine combine) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        x = combine(x, __shfl_xor_sync(0xffffffffu, x, offset));
    }
    return x;
}

// combine() of every thread's x, the same in all of them and in every run. The block is whole warps.
template <class T, class Combine>
__device__ T block_all(T x, Combine combine) {
    __shared__ T parts[kMaxWarps];
    const int n_warps = blockDim.x * blockDim.y / kWarp;
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    x = warp_all(x, combine);
    __syncthreads();
    if (thread % kWarp == 0) {
        parts[thread / kWarp] = x;
    }
    __syncthreads();
    // by every warp for itself, as a tree
    const int lane = thread % kWarp;
    x = parts[min(lane, n_warps - 1)];
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        const T other = __shfl_down_sync(0xffffffffu, x, offset);
        x = lane + offset < n_warps ? combine(x, other) : x;
    }
    return __shfl_sync(0xffffffffu, x, 0);
}

struct Sum {
    template <class T>
    __device__ T operator()(T a, T b) const {
        return a + b;
    }
};
struct Most {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Least {
    __device__ float operator()(float a, float b) const { return fminf(a, b); }
};

}  // namespace zipcache::cuda

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
    x = parts[0];
    for (int warp = 1; warp < n_warps; ++warp) {
        x = combine(x, parts[warp]);
    }
    return x;
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

// x [n] in shared memory <- x H, as transform.h defines it. Every thread below n calls; the block synchronizes.
__device__ inline void walsh_hadamard(float * x, int n, int thread) {
    const int size = n & -n;
    for (int half = 1; half < size; half *= 2) {
        __syncthreads();
        float a = 0, b = 0;
        if (thread < n) {
            a = x[thread];
            b = x[thread ^ half];
        }
        __syncthreads();
        if (thread < n) {
            x[thread] = thread & half ? b - a : a + b;
        }
    }
    __syncthreads();
    if (thread < n) {
        x[thread] *= rsqrtf(static_cast<float>(size));
    }
    __syncthreads();
}

}  // namespace zipcache::cuda

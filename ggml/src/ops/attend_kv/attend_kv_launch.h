#pragma once
// What attend_kv hands to the kernel of a head_dim. Each has a file of its own, to be compiled side by side.
#include <cuda_runtime.h>

#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {

constexpr int kRows = 8;  // query heads that a unit is read for, at most: a pass
constexpr int kMaxItems = 4096;

// Floats of a part of an item, as one block of threads leaves it for another: [kRows, head_dim] sums, then [kRows, 2]:
// maximum and sum.
constexpr int part_floats(int head_dim) {
    return kRows * (head_dim + 2);
}

struct AttendParams {
    ggml_zipcache_cuda_attend_args a;
    int group;        // query heads of a KV head
    int n_passes;     // items of a KV head
    int n_items;      // [n_sequences, n_kv_heads, n_passes]
    float * partial;  // [gridDim + n_items, part_floats()]; zeros between launches
};

struct Device {
    int multiprocessors = 1, shared_bytes = 0;  // of a block of threads, at most
    bool starts_early = false;                  // a launch may begin before the one before it has ended

    Device() {
        int device = 0;
        cudaGetDevice(&device);
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
        int major = 0;
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
        starts_early = major >= 9;
    }
};

// NULL, or what is wrong with a call's shape.
const char * attend_error(const ggml_zipcache_cuda_attend_args & a);

// Any: whatever the segments' formats; else those that ggml_zipcache_cuda_is_common() tells.
const char * launch_attend_64(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_64_any(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_80(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_80_any(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_96(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_96_any(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_128(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_128_any(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_256(const AttendParams & p, cudaStream_t stream);
const char * launch_attend_256_any(const AttendParams & p, cudaStream_t stream);

}  // namespace zipcache::cuda

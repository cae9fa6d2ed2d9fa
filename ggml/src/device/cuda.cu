#include <cuda_runtime.h>

#include "ggml-zipcache-cuda.h"

int ggml_zipcache_cuda_n_devices() {
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

const char * ggml_zipcache_cuda_device_error(int device) {
    if (device < 0 || device >= ggml_zipcache_cuda_n_devices()) {
        return "a CUDA device that is not there; accepted: those that ggml_zipcache_cuda_n_devices() counts";
    }
    int major = 0, shared = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    // attend_kv keeps two halves of a block for each warp
    return major < 8 || shared < 96 * 1024
               ? "a CUDA device that is too old; accepted: compute capability 8.0 and later "
                 "with 96 KiB of shared memory for a block of threads"
               : nullptr;
}

#pragma once
#include <cuda_runtime.h>

namespace zipcache::cuda {

// What the launches since the last call came to.
inline const char * launch_error() {
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace zipcache::cuda

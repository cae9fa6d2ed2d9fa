#pragma once
#include <cuda_runtime_api.h>

#include <string>

#include "common/error.h"

namespace zipcache::cuda {

// Throws ContextError for what CUDA, or one of our ops, has to complain about.
inline void check(cudaError_t error, const char * what) {
    if (error != cudaSuccess) {
        (void) cudaGetLastError();  // a later call must not report it again
        throw ContextError(std::string("CUDA could not ") + what + ": " + cudaGetErrorString(error));
    }
}

inline void check(const char * error, const char * op) {
    if (error) {
        throw ModelError(std::string("CUDA: ") + op + ": " + error);
    }
}

}  // namespace zipcache::cuda

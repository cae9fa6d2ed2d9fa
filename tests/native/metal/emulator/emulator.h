#pragma once
// Runs Metal kernels on the CPU, one threadgroup after another, to test what they compute. The kernels' own headers are
// compiled as C++14 against shim/, whose functions end in emulated.h; each thread is a fiber of its own, switched at
// barriers and at SIMD-group functions, so runs are deterministic. The compiler reports every access to memory (with
// the calls of -fsanitize=thread, which watch.cpp answers), and a run ends with EmulatorError at
//   - an access outside the buffers that were shown, or outside the threadgroup memory that the dispatch asked for;
//   - a write to what is read-only (the parameters);
//   - a misaligned access of 2 to 16 bytes;
//   - threadgroup memory that is read before this threadgroup wrote it;
//   - two threads at the same byte, one of them writing, with no barrier between (in threadgroup and device memory; for
//     a simdgroup_barrier only if both are of that SIMD-group), or two threadgroups so within one dispatch, unless both
//     accesses are atomic;
//   - barriers or SIMD-group functions that not all threads reach, or that are different ones.
//
// What it does not model: speed; registers and what they spill; the weak memory model beyond the rule above; real
// divergence (SIMD-group functions must be reached by all 32 lanes here, Metal lets some be absent); fast math, fused
// multiply-adds and how Metal rounds exp2, log2 and division; denormals flushed to zero; which lane holds which element
// of a simdgroup_matrix (kernels must not know it), and the order in which it sums; what Metal's compiler accepts
// beyond or short of C++14 (address spaces are checked by clang apart: ../CMakeLists.txt).
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "ggml-zipcache-metal.h"

namespace emulator {

struct EmulatorError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Memory that kernels may touch until it is forgotten. Regions don't overlap.
void show_buffer(const void * begin, size_t n_bytes);
void forget_buffer(const void * begin);
void forget_buffers();

void run(const ggml_zipcache_metal_dispatch & dispatch);
bool has_kernel(const char * name);

// Encodes by running at once.
ggml_zipcache_metal_encoder encoder();

}  // namespace emulator

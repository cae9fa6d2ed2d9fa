#pragma once
#include <vector>

#include "ops/attend_kv/attend_kv.h"
#include "ops/mul_mat/mul_mat.h"
#include "ops/score_probes/score_probes.h"

// What the processor brings: one file an architecture, chosen by CMake.
namespace zipcache::device {

// The levels that this machine has, best last; the first is the reference.
std::vector<ggml_zipcache_cpu> cpu_levels();

// Null where the portable code serves.
struct CpuKernels {
    attend_kv::WindowKernel window = nullptr;
    attend_kv::PackedKernel packed = nullptr;
    score_probes::AddSoftmax add_softmax = nullptr;
    mul_mat::Kernel mul_mat = nullptr;
    bool mul_mat_beats_ggml = false;  // on wide products of packed weights
};

CpuKernels cpu_kernels(ggml_zipcache_cpu level);

inline CpuKernels cpu_kernels() {
    return cpu_kernels(ggml_zipcache_cpu_level());
}

}  // namespace zipcache::device

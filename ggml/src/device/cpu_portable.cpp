// A processor, a system or a compiler for which no vector kernels are built.
#include "device/cpu_kernels.h"

std::vector<ggml_zipcache_cpu> zipcache::device::cpu_levels() {
    return {GGML_ZIPCACHE_CPU_REF};
}

zipcache::device::CpuKernels zipcache::device::cpu_kernels(ggml_zipcache_cpu) {
    return {};
}

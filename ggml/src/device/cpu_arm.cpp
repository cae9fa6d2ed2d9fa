#include "device/cpu_arm.h"

#include "device/cpu_kernels.h"

namespace zipcache::device {

std::vector<ggml_zipcache_cpu> cpu_levels() {
    std::vector<ggml_zipcache_cpu> levels = {GGML_ZIPCACHE_CPU_REF, GGML_ZIPCACHE_CPU_NEON};
    if (arm_has_dotprod()) {
        levels.push_back(GGML_ZIPCACHE_CPU_DOTPROD);
    }
    return levels;
}

CpuKernels cpu_kernels(ggml_zipcache_cpu level) {
    // not measured; ggml's own products of packed weights are made for these processors
    constexpr bool kMulMatBeatsGgml = false;
    switch (level) {
        case GGML_ZIPCACHE_CPU_DOTPROD:
            return {attend_kv::window_neon, attend_kv::packed_dotprod, score_probes::add_softmax_neon,
                    mul_mat::mul_mat_neon, kMulMatBeatsGgml};
        case GGML_ZIPCACHE_CPU_NEON:
            return {attend_kv::window_neon, attend_kv::packed_neon, score_probes::add_softmax_neon,
                    mul_mat::mul_mat_neon, kMulMatBeatsGgml};
        default: return {};
    }
}

}  // namespace zipcache::device

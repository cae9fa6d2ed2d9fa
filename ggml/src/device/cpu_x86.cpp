#include "device/cpu_kernels.h"

namespace zipcache::device {

std::vector<ggml_zipcache_cpu> cpu_levels() {
    std::vector<ggml_zipcache_cpu> levels = {GGML_ZIPCACHE_CPU_REF};
    __builtin_cpu_init();
    // every AVX2 machine has F16C
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        return levels;
    }
    levels.push_back(GGML_ZIPCACHE_CPU_AVX2);
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
        return levels;
    }
    levels.push_back(GGML_ZIPCACHE_CPU_AVX512);
    if (__builtin_cpu_supports("avx512vnni")) {
        levels.push_back(GGML_ZIPCACHE_CPU_VNNI);
    }
    return levels;
}

CpuKernels cpu_kernels(ggml_zipcache_cpu level) {
    switch (level) {
        case GGML_ZIPCACHE_CPU_VNNI:
            return {attend_kv::window_avx512, attend_kv::packed_vnni, score_probes::add_softmax_avx512,
                    mul_mat::mul_mat_avx512, true};
        case GGML_ZIPCACHE_CPU_AVX512:
            return {attend_kv::window_avx512, attend_kv::packed_avx2, score_probes::add_softmax_avx512,
                    mul_mat::mul_mat_avx512, true};
        case GGML_ZIPCACHE_CPU_AVX2:
            return {attend_kv::window_avx2, attend_kv::packed_avx2, score_probes::add_softmax_avx2,
                    mul_mat::mul_mat_avx2, true};
        default: return {};
    }
}

}  // namespace zipcache::device

#include <cstdlib>
#include <cstring>

#include "device/cpu_kernels.h"

namespace {

ggml_zipcache_cpu choose() {
    const auto levels = zipcache::device::cpu_levels();
    const char * name = std::getenv("ZIPCACHE_CPU");
    for (auto level : levels) {
        if (name && std::strcmp(name, ggml_zipcache_cpu_name(level)) == 0) {
            return level;
        }
    }
    return levels.back();
}

}  // namespace

ggml_zipcache_cpu ggml_zipcache_cpu_level() {
    static const ggml_zipcache_cpu level = choose();
    return level;
}

const char * ggml_zipcache_cpu_name(ggml_zipcache_cpu level) {
    switch (level) {
        case GGML_ZIPCACHE_CPU_AVX2: return "avx2";
        case GGML_ZIPCACHE_CPU_AVX512: return "avx512";
        case GGML_ZIPCACHE_CPU_VNNI: return "vnni";
        case GGML_ZIPCACHE_CPU_NEON: return "neon";
        case GGML_ZIPCACHE_CPU_DOTPROD: return "dotprod";
        default: return "ref";
    }
}

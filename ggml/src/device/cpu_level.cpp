#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "ggml-zipcache.h"

namespace {

ggml_zipcache_cpu supported() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        return __builtin_cpu_supports("avx512vnni") ? GGML_ZIPCACHE_CPU_VNNI : GGML_ZIPCACHE_CPU_AVX512;
    }
    // every AVX2 machine has F16C
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return GGML_ZIPCACHE_CPU_AVX2;
    }
#endif
    return GGML_ZIPCACHE_CPU_REF;
}

ggml_zipcache_cpu wanted() {
    const char * name = std::getenv("ZIPCACHE_CPU");
    for (auto level : {GGML_ZIPCACHE_CPU_REF, GGML_ZIPCACHE_CPU_AVX2, GGML_ZIPCACHE_CPU_AVX512}) {
        if (name && std::strcmp(name, ggml_zipcache_cpu_name(level)) == 0) {
            return level;
        }
    }
    return GGML_ZIPCACHE_CPU_VNNI;
}

}  // namespace

ggml_zipcache_cpu ggml_zipcache_cpu_level() {
    static const ggml_zipcache_cpu level = std::min(supported(), wanted());
    return level;
}

const char * ggml_zipcache_cpu_name(ggml_zipcache_cpu level) {
    switch (level) {
        case GGML_ZIPCACHE_CPU_VNNI: return "vnni";
        case GGML_ZIPCACHE_CPU_AVX512: return "avx512";
        case GGML_ZIPCACHE_CPU_AVX2: return "avx2";
        default: return "ref";
    }
}

#include "attend_kv_launch.h"

#include "cuda/launch.h"

namespace zipcache::cuda {
namespace {

// Items that a KV head makes.
int passes(const ggml_zipcache_cuda_attend_args & a) {
    return (a.n_heads / a.n_kv_heads + kRows - 1) / kRows;
}

}  // namespace

const char * attend_error(const ggml_zipcache_cuda_attend_args & a) {
    if (a.n_kv_heads < 1 || a.n_heads % a.n_kv_heads != 0 || a.n_heads / a.n_kv_heads < 1 ||
        a.n_heads / a.n_kv_heads > 16) {
        return "attend_kv got query heads that don't fit the KV heads; accepted: 1 to 16 for each";
    }
    if (a.n_sequences < 1 || int64_t(a.n_sequences) * a.n_kv_heads * passes(a) > kMaxItems) {
        return "attend_kv got too few or too many sequences; accepted: from 1, and up to 4096 KV heads of all together";
    }
    return nullptr;
}

}  // namespace zipcache::cuda

size_t ggml_zipcache_cuda_attend_kv_workspace(const ggml_zipcache_cuda_attend_args * args) {
    using namespace zipcache::cuda;
    if (attend_error(*args)) {
        return 0;
    }
    const int64_t n_items = int64_t(args->n_sequences) * args->n_kv_heads * passes(*args);
    return size_t(Device().multiprocessors + n_items) * part_floats(args->head_dim) * sizeof(float);
}

const char * ggml_zipcache_cuda_attend_kv(const ggml_zipcache_cuda_attend_args * args, void * workspace,
                                          size_t workspace_bytes, void * stream) {
    using namespace zipcache::cuda;
    if (const char * error = attend_error(*args)) {
        return error;
    }
    if (workspace_bytes < ggml_zipcache_cuda_attend_kv_workspace(args)) {
        return "attend_kv got a workspace that is too small; accepted: ggml_zipcache_cuda_attend_kv_workspace()";
    }
    const int n_passes = passes(*args), n_items = args->n_sequences * args->n_kv_heads * n_passes;
    const AttendParams p = {*args, args->n_heads / args->n_kv_heads, n_passes, n_items,
                            static_cast<float *>(workspace)};
    const auto at = static_cast<cudaStream_t>(stream);
    const bool any = args->any_format;
    switch (args->head_dim) {
        case 64: return any ? launch_attend_64_any(p, at) : launch_attend_64(p, at);
        case 80: return any ? launch_attend_80_any(p, at) : launch_attend_80(p, at);
        case 96: return any ? launch_attend_96_any(p, at) : launch_attend_96(p, at);
        case 128: return any ? launch_attend_128_any(p, at) : launch_attend_128(p, at);
        case 256: return any ? launch_attend_256_any(p, at) : launch_attend_256(p, at);
        default: return "attend_kv got a head_dim that it has no kernel for; accepted: 64, 80, 96, 128, 256";
    }
}

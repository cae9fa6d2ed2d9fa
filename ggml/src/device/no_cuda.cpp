// A build without CUDA: no device, and ops that say so.
#include "ggml-zipcache-cuda.h"

namespace {

constexpr const char * kMissing = "this build has no CUDA kernels; accepted: a build with ZIPCACHE_CUDA=ON";

}  // namespace

int ggml_zipcache_cuda_n_devices() {
    return 0;
}

const char * ggml_zipcache_cuda_device_error(int) {
    return kMissing;
}

size_t ggml_zipcache_cuda_quantize_kv_workspace(const ggml_zipcache_format *, int64_t) {
    return 0;
}

const char * ggml_zipcache_cuda_quantize_kv(const ggml_zipcache_format *, const ggml_zipcache_rows *, uint8_t *, size_t,
                                            void *, size_t, void *) {
    return kMissing;
}

size_t ggml_zipcache_cuda_dequantize_kv_workspace(const ggml_zipcache_format *, int64_t) {
    return 0;
}

const char * ggml_zipcache_cuda_dequantize_kv(const ggml_zipcache_format *, const uint8_t *,
                                              const ggml_zipcache_cuda_rows_out *, void *, size_t, void *) {
    return kMissing;
}

const char * ggml_zipcache_cuda_positions(const ggml_zipcache_format *, const uint8_t *, int64_t, uint16_t *, void *,
                                          size_t, void *) {
    return kMissing;
}

size_t ggml_zipcache_cuda_index_bytes(int32_t, int32_t, int64_t) {
    return 0;
}

const char * ggml_zipcache_cuda_index_kv(const ggml_zipcache_cuda_index_args *, uint8_t *, void *) {
    return kMissing;
}

const char * ggml_zipcache_cuda_append_kv(const ggml_zipcache_cuda_attend_args *, const ggml_zipcache_cuda_new_tokens *,
                                          void *) {
    return kMissing;
}

size_t ggml_zipcache_cuda_attend_kv_workspace(const ggml_zipcache_cuda_attend_args *) {
    return 0;
}

const char * ggml_zipcache_cuda_attend_kv(const ggml_zipcache_cuda_attend_args *, void *, size_t, void *) {
    return kMissing;
}

size_t ggml_zipcache_cuda_score_probes_workspace(const ggml_zipcache_probes *, int64_t) {
    return 0;
}

const char * ggml_zipcache_cuda_score_probes(const ggml_zipcache_probes *, const ggml_zipcache_cuda_scores *, void *,
                                             size_t, void *) {
    return kMissing;
}

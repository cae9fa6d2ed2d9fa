#include "ggml-zipcache-metal.h"

namespace {

// Every function of the library.
constexpr const char * kKernels[] = {
    "fill",
    "order_tokens",
    "positions",
    "clear_rows",
    "dequantize_kv_64",
    "dequantize_kv_80",
    "dequantize_kv_96",
    "dequantize_kv_128",
    "dequantize_kv_256",
    "quantize_kv_tables",
    "quantize_kv_tags",
    "quantize_kv_measure_64",
    "quantize_kv_measure_80",
    "quantize_kv_measure_96",
    "quantize_kv_measure_128",
    "quantize_kv_measure_256",
    "quantize_kv_heads",
    "quantize_kv_shared",
    "quantize_kv_encode_64",
    "quantize_kv_encode_80",
    "quantize_kv_encode_96",
    "quantize_kv_encode_128",
    "quantize_kv_encode_256",
    "index_kv_segments",
    "index_kv_blocks",
    "append_kv",
    "attend_kv_64",
    "attend_kv_80",
    "attend_kv_96",
    "attend_kv_128",
    "attend_kv_256",
    "attend_kv_merge",
    "score_probes_prepare",
    "score_probes_rows_64",
    "score_probes_rows_80",
    "score_probes_rows_96",
    "score_probes_rows_128",
    "score_probes_rows_256",
    "score_probes_columns_64",
    "score_probes_columns_80",
    "score_probes_columns_96",
    "score_probes_columns_128",
    "score_probes_columns_256",
    "top_ratio",
};

}  // namespace

int ggml_zipcache_metal_n_kernels() {
    return int(sizeof kKernels / sizeof kKernels[0]);
}

const char * ggml_zipcache_metal_kernel(int i) {
    return i >= 0 && i < ggml_zipcache_metal_n_kernels() ? kKernels[i] : nullptr;
}

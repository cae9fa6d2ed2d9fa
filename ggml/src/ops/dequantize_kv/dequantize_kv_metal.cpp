// The dispatches of dequantize_kv and positions.
#include "ggml-zipcache-cuda.h"
#include "metal/encode.h"

namespace zipcache::metal_abi {
namespace {

constexpr const char * kDecode[] = {"dequantize_kv_64", "dequantize_kv_80", "dequantize_kv_96", "dequantize_kv_128",
                                    "dequantize_kv_256"};

struct Sizes {
    uint64_t counts, size;
    int max_places, max_blocks;

    Sizes(const ggml_zipcache_format & f, int64_t n_tokens) {
        const uint64_t orders = f.same_order ? 1 : f.n_kv_heads;
        max_places = int(ggml_zipcache_cuda_max_places(&f, n_tokens));
        max_blocks = int(ggml_zipcache_cuda_max_blocks(&f, n_tokens));
        counts = aligned(orders * max_places * sizeof(uint32_t));
        size = counts + orders * f.n_tiers * sizeof(uint32_t);
    }
};

const char * rows_error(const ggml_zipcache_format & f, const ggml_zipcache_metal_rows & rows) {
    if (const char * error = format_error(f)) {
        return error;
    }
    return rows.n_tokens < 1 || rows.n_tokens > kMaxTokens ? "dequantize_kv got no tokens or too many; accepted: 1 "
                                                             "to 2^27"
                                                           : nullptr;
}

void find_order(const ggml_zipcache_format & f, const ggml_zipcache_metal_rows & rows, Address segment,
                Address workspace, const Encoder & to) {
    const Sizes s(f, rows.n_tokens);
    to.fill(workspace, s.counts, ~0u);
    const OrderParams params = {rows.format,        0,           segment, workspace + s.counts, workspace,
                                int(rows.n_tokens), s.max_places};
    to.dispatch("order_tokens", params,
                {f.same_order ? 1 : f.n_kv_heads, 1, 1, kOrderThreads, order_threadgroup_bytes()});
}

}  // namespace
}  // namespace zipcache::metal_abi

size_t ggml_zipcache_metal_dequantize_kv_workspace(const ggml_zipcache_format * format, int64_t n_tokens) {
    return zipcache::metal_abi::Sizes(*format, n_tokens).size;
}

const char * ggml_zipcache_metal_dequantize_kv(const ggml_zipcache_format * format,
                                               const ggml_zipcache_metal_rows * rows,
                                               ggml_zipcache_metal_address segment,
                                               ggml_zipcache_metal_address workspace,
                                               const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    const auto & f = *format;
    const auto & r = *rows;
    if (const char * error = rows_error(f, r)) {
        return error;
    }
    const Encoder to(*encoder);
    const Sizes s(f, r.n_tokens);
    find_order(f, r, segment, workspace, to);
    const ClearParams clear = {r.k, r.v, r.kept, r.stride, int(r.n_tokens), f.head_dim};
    to.dispatch("clear_rows", clear, {r.n_tokens, f.n_kv_heads, 1, kSimd});
    const RowsParams params = {r.format,    segment, workspace, workspace + s.counts, r.k,         r.v, r.k_divisor,
                               r.v_divisor, r.kept,  r.stride,  int(r.n_tokens),      s.max_places};
    to.dispatch(by_head_dim(f.head_dim, kDecode), params,
                {int64_t(s.max_blocks) * kBlockSteps, f.n_kv_heads, 2, kSimd, rows_threadgroup_bytes(f.head_dim)});
    return nullptr;
}

const char * ggml_zipcache_metal_positions(const ggml_zipcache_format * format, const ggml_zipcache_metal_rows * rows,
                                           ggml_zipcache_metal_address segment, ggml_zipcache_metal_address position,
                                           ggml_zipcache_metal_address workspace,
                                           const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    if (const char * error = rows_error(*format, *rows)) {
        return error;
    }
    if (rows->n_tokens > 65535) {
        return "positions got too many tokens; accepted: up to 65535";
    }
    const Encoder to(*encoder);
    const Sizes s(*format, rows->n_tokens);
    find_order(*format, *rows, segment, workspace, to);
    const PositionParams params = {rows->format, workspace, position, s.max_places, 0};
    to.dispatch("positions", params,
                {(s.max_places + kPositionThreads - 1) / kPositionThreads, format->n_kv_heads, 1, kPositionThreads});
    return nullptr;
}

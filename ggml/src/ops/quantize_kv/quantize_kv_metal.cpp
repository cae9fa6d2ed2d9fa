// The dispatches of quantize_kv.
#include "ggml-zipcache-cuda.h"
#include "metal/encode.h"
#include "segment.h"

namespace zipcache::metal_abi {
namespace {

constexpr const char * kMeasure[] = {"quantize_kv_measure_64", "quantize_kv_measure_80", "quantize_kv_measure_96",
                                     "quantize_kv_measure_128", "quantize_kv_measure_256"};
constexpr const char * kEncode[] = {"quantize_kv_encode_64", "quantize_kv_encode_80", "quantize_kv_encode_96",
                                    "quantize_kv_encode_128", "quantize_kv_encode_256"};

// Offsets in the workspace: zeros at first but `token`.
struct Sizes {
    uint64_t widest, whole, shared, token, size;
    int max_places, max_blocks;

    Sizes(const ggml_zipcache_format & f, int64_t n_tokens) {
        const uint64_t orders = format::n_orders(f), heads = f.n_kv_heads, pair = 2 * sizeof(uint32_t);
        max_places = int(ggml_zipcache_cuda_max_places(&f, n_tokens));
        max_blocks = int(ggml_zipcache_cuda_max_blocks(&f, n_tokens));
        widest = aligned(orders * f.n_tiers * sizeof(uint32_t));
        whole = aligned(widest + 2 * heads * pair);
        shared = aligned(whole + 2 * heads * f.n_tiers * f.head_dim * pair);
        token = aligned(shared + 2 * uint64_t(max_places) * pair);
        size = token + orders * max_places * sizeof(uint32_t);
    }
};

}  // namespace
}  // namespace zipcache::metal_abi

size_t ggml_zipcache_metal_quantize_kv_workspace(const ggml_zipcache_format * format, int64_t n_tokens) {
    return zipcache::metal_abi::Sizes(*format, n_tokens).size;
}

const char * ggml_zipcache_metal_quantize_kv(const ggml_zipcache_format * format, const ggml_zipcache_metal_rows * rows,
                                             ggml_zipcache_metal_address to, size_t capacity,
                                             ggml_zipcache_metal_address workspace,
                                             const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache;
    using namespace zipcache::metal_abi;
    const auto & f = *format;
    const auto & r = *rows;
    if (const char * error = format_error(f)) {
        return error;
    }
    if (r.n_tokens < 1 || r.n_tokens > kMaxTokens || capacity < sizeof(SegmentHeader) || capacity % 4 != 0) {
        return "quantize_kv got no tokens, too many, or no room for a header; accepted: 1 to 2^27 tokens, from 16 "
               "bytes, "
               "a multiple of 4";
    }
    const Sizes s(f, r.n_tokens);
    const QuantizeParams params = {{r.format, to, workspace + s.token, workspace, r.k, r.v, r.k_divisor, r.v_divisor, 0,
                                    r.stride, int(r.n_tokens), s.max_places},
                                   r.tier,
                                   workspace + s.widest,
                                   workspace + s.whole,
                                   workspace + s.shared,
                                   capacity};
    const Encoder e(*encoder);
    e.fill(workspace, s.token, 0);
    e.fill(workspace + s.token, s.size - s.token, ~0u);
    e.fill(to, capacity, 0);  // gaps too, so that equal input gives equal bytes
    const OrderParams order = {r.format, r.tier, 0, workspace, workspace + s.token, int(r.n_tokens), s.max_places};
    e.dispatch("order_tokens", order, {format::n_orders(f), 1, 1, kOrderThreads, order_threadgroup_bytes()});
    e.dispatch("quantize_kv_tables", params, {1, 1, 1, kSimd});
    const int64_t tags = format::n_orders(f) * format::tag_bytes(f, r.n_tokens);
    e.dispatch("quantize_kv_tags", params, {(tags + kTagThreads - 1) / kTagThreads, 1, 1, kTagThreads});
    e.dispatch(by_head_dim(f.head_dim, kMeasure), params,
               {s.max_blocks, f.n_kv_heads, 2, kSimd, row_bytes(f.head_dim)});
    e.dispatch("quantize_kv_heads", params, {f.n_kv_heads, 2, 1, kSimd});
    e.dispatch("quantize_kv_shared", params, {s.max_blocks, 2, 1, kSharedThreads});
    e.dispatch(by_head_dim(f.head_dim, kEncode), params,
               {s.max_blocks, f.n_kv_heads, 2, kSimd, rows_threadgroup_bytes(f.head_dim)});
    return nullptr;
}

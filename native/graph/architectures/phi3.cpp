// Phi-3 and Phi-3.5 mini: one fused matrix for q, k and v and one for the FFN's gate and up.
#include <cmath>

#include "common/error.h"
#include "graph/architecture.h"

namespace zipcache {
namespace {

void shape(const GgufFile & file, HParams & h) {
    h.rope.pairs = RopePairs::halves;
    const int64_t window = file.maybe_integer("phi3.attention.sliding_window").value_or(0);
    if (window < 0 || window > (1 << 30)) {
        throw ModelError("phi3.attention.sliding_window is " + std::to_string(window) + "; accepted: 0 or more");
    }
    h.sliding_window = static_cast<int>(window);
    h.rope_local = h.rope;
    h.is_sliding.assign(h.n_layers, window > 0);
}

void weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    common_weights(weights, h, prefix, w);
    const int64_t qkv_dim = int64_t(h.n_heads + 2 * h.n_kv_heads) * h.head_dim;
    w.qkv = weights.matrix(prefix + "attn_qkv.weight", {h.n_embd, qkv_dim});
    w.ffn_up = weights.matrix(prefix + "ffn_up.weight", {h.n_embd, 2 * int64_t(h.n_ff)});
    w.ffn_down = weights.matrix(prefix + "ffn_down.weight", {h.n_ff, h.n_embd});
}

ggml_tensor * layer(const LayerGraph & g, ggml_tensor * x) {
    return pre_norm_layer(g, x, g.split_heads(g.linear(g.norm(x, g.w.attention_norm), g.w.qkv)));
}

}  // namespace

const Architecture kPhi3 = {"phi3", shape, weights, layer};

}  // namespace zipcache

// Qwen3: RMS norms on every query and key head before RoPE, no biases.
#include "graph/architecture.h"

namespace zipcache {
namespace {

void shape(const GgufFile &, HParams & h) {
    h.rope.pairs = RopePairs::halves;
}

void weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    common_weights(weights, h, prefix, w);
    common_projections(weights, h, prefix, w);
    w.q_norm = weights.plain(prefix + "attn_q_norm.weight", {h.head_dim});
    w.k_norm = weights.plain(prefix + "attn_k_norm.weight", {h.head_dim});
}

ggml_tensor * layer(const LayerGraph & g, ggml_tensor * x) {
    Heads heads = g.project_heads(g.norm(x, g.w.attention_norm));
    heads.q = g.norm(heads.q, g.w.q_norm);
    heads.k = g.norm(heads.k, g.w.k_norm);
    return pre_norm_layer(g, x, heads);
}

}  // namespace

const Architecture kQwen3 = {"qwen3", shape, weights, layer};

}  // namespace zipcache

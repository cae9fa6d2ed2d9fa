// Qwen3: RMS norms on every query and key head before RoPE, no biases. Qwen3 MoE: the same with experts in every layer.
#include "common/error.h"
#include "graph/architecture.h"

namespace zipcache {
namespace {

void shape(const GgufFile &, HParams & h) {
    h.rope.pairs = RopePairs::halves;
}

void moe_shape(const GgufFile & file, HParams & h) {
    shape(file, h);
    read_experts(file, h);
    if (h.n_experts == 0) {
        throw ModelError("qwen3moe.expert_count is missing or 0; accepted: 1 or more");
    }
    if (!file.find("qwen3moe.expert_feed_forward_length")) {
        h.n_ff /= h.n_experts_used;
    }
}

void attention_weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    common_weights(weights, h, prefix, w);
    separate_projections(weights, h, prefix, w);
    w.q_norm = weights.plain(prefix + "attn_q_norm.weight", {h.head_dim});
    w.k_norm = weights.plain(prefix + "attn_k_norm.weight", {h.head_dim});
}

void dense_weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    attention_weights(weights, h, prefix, w);
    dense_ffn(weights, h, prefix, w);
}

void moe_weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    attention_weights(weights, h, prefix, w);
    expert_ffn(weights, h, prefix, w);
}

ggml_tensor * layer(const LayerGraph & g, ggml_tensor * x) {
    Heads heads = g.project_heads(g.norm(x, g.w.attention_norm));
    heads.q = g.norm(heads.q, g.w.q_norm);
    heads.k = g.norm(heads.k, g.w.k_norm);
    return pre_norm_layer(g, x, heads);
}

}  // namespace

const Architecture kQwen3 = {"qwen3", shape, dense_weights, layer};
const Architecture kQwen3Moe = {"qwen3moe", moe_shape, moe_weights, layer};

}  // namespace zipcache

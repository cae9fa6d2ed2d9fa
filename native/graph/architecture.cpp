#include "graph/architecture.h"

#include "common/error.h"

namespace zipcache {

const Architecture & find_architecture(const std::string & name) {
    static const Architecture * const all[] = {&kLlama, &kQwen2, &kQwen3, &kQwen3Moe, &kGemma3, &kPhi3};
    std::string known;
    for (const Architecture * architecture : all) {
        if (name == architecture->name) {
            return *architecture;
        }
        known += (known.empty() ? "" : ", ") + std::string(architecture->name);
    }
    throw ModelError("the model's architecture is '" + name + "'; accepted: " + known);
}

void separate_projections(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    const int64_t q_dim = int64_t(h.n_heads) * h.head_dim;
    const int64_t kv_dim = int64_t(h.n_kv_heads) * h.head_dim;
    w.qkv = weights.stack({prefix + "attn_q.weight", prefix + "attn_k.weight", prefix + "attn_v.weight"});
    w.q = weights.matrix(prefix + "attn_q.weight", {h.n_embd, q_dim});
    w.k = weights.matrix(prefix + "attn_k.weight", {h.n_embd, kv_dim});
    w.v = weights.matrix(prefix + "attn_v.weight", {h.n_embd, kv_dim});
    w.q_bias = weights.plain(prefix + "attn_q.bias", {q_dim}, false);
    w.k_bias = weights.plain(prefix + "attn_k.bias", {kv_dim}, false);
    w.v_bias = weights.plain(prefix + "attn_v.bias", {kv_dim}, false);
}

void dense_ffn(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    w.ffn_gate = weights.matrix(prefix + "ffn_gate.weight", {h.n_embd, h.n_ff});
    w.ffn_up = weights.matrix(prefix + "ffn_up.weight", {h.n_embd, h.n_ff});
    w.ffn_down = weights.matrix(prefix + "ffn_down.weight", {h.n_ff, h.n_embd});
}

void expert_ffn(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    w.ffn_router = weights.matrix(prefix + "ffn_gate_inp.weight", {h.n_embd, h.n_experts});
    w.experts_gate = weights.experts(prefix + "ffn_gate_exps.weight", {h.n_embd, h.n_ff, h.n_experts});
    w.experts_up = weights.experts(prefix + "ffn_up_exps.weight", {h.n_embd, h.n_ff, h.n_experts});
    w.experts_down = weights.experts(prefix + "ffn_down_exps.weight", {h.n_ff, h.n_embd, h.n_experts});
}

void common_weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    w.attention_norm = weights.plain(prefix + "attn_norm.weight", {h.n_embd});
    w.attention_output = weights.matrix(prefix + "attn_output.weight", {int64_t(h.n_heads) * h.head_dim, h.n_embd});
    w.attention_output_bias = weights.plain(prefix + "attn_output.bias", {h.n_embd}, false);
    w.ffn_norm = weights.plain(prefix + "ffn_norm.weight", {h.n_embd});
}

ggml_tensor * pre_norm_layer(const LayerGraph & g, ggml_tensor * x, const Heads & heads) {
    x = g.residual(x, g.attend(heads));
    ggml_tensor * normed = g.norm(x, g.w.ffn_norm);
    return g.residual(x, g.w.ffn_router ? g.moe_ffn(normed) : g.gated_ffn(normed, Activation::silu));
}

}  // namespace zipcache

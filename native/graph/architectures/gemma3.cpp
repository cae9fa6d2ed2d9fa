// Gemma 3 (text): five sliding-window layers to one that sees everything, norms before and after each block,
// norms on query and key heads, GELU, scaled embeddings. Norm weights in GGUF files already hold their "1 +".
#include <cmath>

#include "common/error.h"
#include "graph/architecture.h"

namespace zipcache {
namespace {

void shape(const GgufFile & file, HParams & h) {
    constexpr int kPattern = 6;  // every sixth layer sees everything
    constexpr int kLayers27B = 62;
    const int64_t window = file.integer("gemma3.attention.sliding_window");
    if (window < 1 || window > (1 << 30)) {
        throw ModelError("gemma3.attention.sliding_window is " + std::to_string(window) + "; accepted: 1 or more");
    }
    h.sliding_window = static_cast<int>(window);
    h.embedding_scale = std::sqrt(float(h.n_embd));
    h.rope.pairs = RopePairs::halves;
    if (!file.find("gemma3.rope.freq_base")) {
        h.rope.base = 1000000.0f;
    }
    h.rope_local = h.rope;
    h.rope_local.base = static_cast<float>(file.maybe_number("gemma3.rope.freq_base_swa").value_or(10000.0));
    h.rope_local.frequency_scale = 1.0f;
    for (int layer = 0; layer < h.n_layers; ++layer) {
        h.is_sliding[layer] = (layer + 1) % kPattern != 0;
    }
    if (h.n_layers == kLayers27B) {  // the 27B model alone scales by the width of an equal share, not by head_dim
        h.attention_scale = 1.0f / std::sqrt(float(h.n_embd) / h.n_heads);
    }
}

void weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    common_weights(weights, h, prefix, w);
    separate_projections(weights, h, prefix, w);
    dense_ffn(weights, h, prefix, w);
    w.q_norm = weights.plain(prefix + "attn_q_norm.weight", {h.head_dim});
    w.k_norm = weights.plain(prefix + "attn_k_norm.weight", {h.head_dim});
    w.attention_post_norm = weights.plain(prefix + "post_attention_norm.weight", {h.n_embd});
    w.ffn_post_norm = weights.plain(prefix + "post_ffw_norm.weight", {h.n_embd});
}

ggml_tensor * layer(const LayerGraph & g, ggml_tensor * x) {
    Heads heads = g.project_heads(g.norm(x, g.w.attention_norm));
    heads.q = g.norm(heads.q, g.w.q_norm);
    heads.k = g.norm(heads.k, g.w.k_norm);
    x = g.residual(x, g.norm(g.attend(heads), g.w.attention_post_norm));
    ggml_tensor * ffn = g.gated_ffn(g.norm(x, g.w.ffn_norm), Activation::gelu);
    return g.residual(x, g.norm(ffn, g.w.ffn_post_norm));
}

}  // namespace

const Architecture kGemma3 = {"gemma3", shape, weights, layer};

}  // namespace zipcache

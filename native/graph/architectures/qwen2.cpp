// Qwen2 and Qwen2.5: Llama with biases on q, k and v, and RoPE on halves.
#include "graph/architecture.h"

namespace zipcache {
namespace {

void shape(const GgufFile &, HParams & h) {
    h.rope.pairs = RopePairs::halves;
}

void weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    common_weights(weights, h, prefix, w);
    separate_projections(weights, h, prefix, w);
    dense_ffn(weights, h, prefix, w);
}

ggml_tensor * layer(const LayerGraph & g, ggml_tensor * x) {
    return pre_norm_layer(g, x, g.project_heads(g.norm(x, g.w.attention_norm)));
}

}  // namespace

const Architecture kQwen2 = {"qwen2", shape, weights, layer};

}  // namespace zipcache

// Llama 2 and 3, Mistral, SmolLM2, TinyLlama: the plain pre-norm transformer. Mixtral: the same with experts.
#include "graph/architecture.h"

namespace zipcache {
namespace {

void shape(const GgufFile & file, HParams & h) {
    h.rope.pairs = RopePairs::adjacent;
    read_experts(file, h);
}

void weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w) {
    common_weights(weights, h, prefix, w);
    separate_projections(weights, h, prefix, w);
    (h.n_experts > 0 ? expert_ffn : dense_ffn)(weights, h, prefix, w);
}

ggml_tensor * layer(const LayerGraph & g, ggml_tensor * x) {
    return pre_norm_layer(g, x, g.project_heads(g.norm(x, g.w.attention_norm)));
}

}  // namespace

const Architecture kLlama = {"llama", shape, weights, layer};

}  // namespace zipcache

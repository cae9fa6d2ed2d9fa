#pragma once
#include <string>

#include "graph/layer_graph.h"

namespace zipcache {

// A model family: what its file holds beyond what all share, and how one of its layers computes.
// To add one: a file in architectures/ like its neighbours, and a line in architecture.cpp.
struct Architecture {
    const char * name;                                  // general.architecture
    void (*shape)(const GgufFile & file, HParams & h);  // completes what read_hparams() found
    void (*weights)(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w);
    ggml_tensor * (*layer)(const LayerGraph & g, ggml_tensor * x);  // [n_embd, n_tokens] -> [n_embd, n_queries]
};

extern const Architecture kLlama, kQwen2, kQwen3, kQwen3Moe, kGemma3, kPhi3;

// Throws ModelError that lists the known ones.
const Architecture & find_architecture(const std::string & name);

// The norms and the matrix behind the attention that every family has.
void common_weights(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w);
// One matrix for each of q, k and v.
void separate_projections(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w);
// A gated FFN, or a router and n_experts of them.
void dense_ffn(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w);
void expert_ffn(Weights & weights, const HParams & h, const std::string & prefix, LayerWeights & w);
// norm - attention - residual - norm - gated FFN, of experts if there are any - residual
ggml_tensor * pre_norm_layer(const LayerGraph & g, ggml_tensor * x, const Heads & heads);

}  // namespace zipcache

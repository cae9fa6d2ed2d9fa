#pragma once
#include <memory>
#include <vector>

#include "graph/architecture.h"

namespace zipcache {

// A loaded network: shape, weights and how its layers compute. Immutable; shared by all sessions.
struct Network {
    const Architecture * architecture;
    HParams h;
    std::unique_ptr<Weights> storage;
    ggml_tensor * token_embedding;  // [n_embd, n_vocab]
    ggml_tensor * output_norm;      // [n_embd]
    ggml_tensor * output;           // [n_embd, n_vocab]; the embedding again when tied
    std::vector<LayerWeights> layers;

    // [rope.n_dims / 2] f32 or null
    ggml_tensor * rope_factors_for(int layer, int n_ctx) const {
        const LayerWeights & w = layers[layer];
        return w.rope_factors_short && n_ctx <= h.rope.n_ctx_original ? w.rope_factors_short : w.rope_factors;
    }
};

// Requests every tensor, checks every shape, loads. Throws ModelError.
std::unique_ptr<Network> load_network(const std::shared_ptr<const GgufFile> & file, const WeightsPlace & place,
                                      const Progress & progress);

// The same without loading: what the weights will take. For the memory plan.
std::unique_ptr<Network> plan_network(const std::shared_ptr<const GgufFile> & file, const WeightsPlace & place);

}  // namespace zipcache

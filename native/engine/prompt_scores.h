#pragma once
#include <cstdint>
#include <vector>

#include "engine/model.h"

namespace zipcache {

// What the probes' attention says of a prompt's tokens (paper, section 4.2), of every layer.
struct PromptScores {
    std::vector<int64_t> probes;  // [n_probes] rising: the tokens whose attention was scored
    std::vector<float> score;     // [n_layers, n_kv_heads, n_tokens]: sum of the probabilities from a group's heads
    std::vector<float> seen;      // [n_layers, n_tokens]: probes that see the token
};

// Runs a prompt of at most one stretch (Session::stretch_after) through the model for these scores alone: the ones that
// its compression with the same options would see. Keeps one layer's keys and values at a time. Throws ArgumentError
// for bad tokens or options that do not fit the model, ContextError when memory runs out, and what `progress` throws.
PromptScores score_prompt(Model & model, const int32_t * tokens, size_t n_tokens, const KvOptions & options,
                          const Progress & progress);

}  // namespace zipcache

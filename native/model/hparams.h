#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "model/gguf_file.h"

namespace zipcache {

// How RoPE pairs channels: (0,1)(2,3).. as Llama GGUF files are permuted for, or (0,d/2)(1,d/2+1).. (NEOX).
enum class RopePairs { adjacent, halves };

struct RopeParams {
    RopePairs pairs = RopePairs::adjacent;
    int n_dims = 0;  // rotated channels of a head
    float base = 10000.0f;
    float frequency_scale = 1.0f;  // 1 / linear or YaRN factor
    float yarn_mix = 0.0f;         // 1: YaRN's mix of interpolation and extrapolation; 0: none
    float attention_factor = 1.0f;
    float beta_fast = 32.0f, beta_slow = 1.0f;
    int n_ctx_original = 0;  // context length before scaling
};

// A model's shape, as its file states it.
struct HParams {
    std::string architecture;
    int n_layers = 0;
    int n_embd = 0;
    int n_heads = 0;
    int n_kv_heads = 0;
    int head_dim = 0;
    int n_ff = 0;                   // of one expert, where there are experts
    int n_experts = 0;              // of each layer; 0: one FFN for all tokens
    int n_experts_used = 0;         // by each token
    bool normalize_experts = true;  // the weights of the experts that a token uses sum to 1
    int n_vocab = 0;
    int n_ctx_train = 0;
    float norm_epsilon = 0;
    float attention_scale = 0;     // multiplies q . k
    float embedding_scale = 1;     // multiplies token embeddings
    RopeParams rope;               // of layers that see everything
    RopeParams rope_local;         // of sliding-window layers
    int sliding_window = 0;        // newest tokens that a sliding-window layer sees; 0: no such layers
    std::vector<bool> is_sliding;  // [n_layers]

    const RopeParams & rope_of(int layer) const { return is_sliding[layer] ? rope_local : rope; }
    int window_of(int layer) const { return is_sliding[layer] ? sliding_window : 0; }
};

// Reads what all architectures share. Throws ModelError naming the key, its value and what is accepted.
HParams read_hparams(const GgufFile & file);

// For families that may have a mixture of experts. Throws ModelError likewise.
void read_experts(const GgufFile & file, HParams & h);

}  // namespace zipcache

#pragma once
#include "device/device.h"
#include "ggml.h"
#include "model/hparams.h"
#include "model/weights.h"

namespace zipcache {

struct Heads {
    ggml_tensor * q;  // [head_dim, n_heads, n_tokens] f32
    ggml_tensor * k;  // [head_dim, n_kv_heads, n_tokens] f32
    ggml_tensor * v;  // [head_dim, n_kv_heads, n_tokens] f32
};

// The seam between a model's graph and its KV cache. An implementation adds the nodes that store the new tokens'
// keys and values and the nodes that attend over everything the layer has cached.
class Attention {
  public:
    virtual ~Attention() = default;
    // Whether attend() takes queries and keys as they are before RoPE.
    virtual bool turns(int /*layer*/) const { return false; }
    // [n_heads * head_dim, n_queries], n_queries = 1 when only the last token is wanted, else n_tokens. rope: null
    // where queries and keys have turned.
    virtual ggml_tensor * attend(ggml_context * ctx, ggml_cgraph * graph, int layer, const Heads & heads,
                                 const Rope * rope) = 0;
};

enum class Activation { silu, gelu };

// What an architecture needs to write down one layer: its place, its weights, and the blocks layers are made of.
struct LayerGraph {
    const Device & device;
    ggml_context * ctx;
    ggml_cgraph * graph;
    const HParams & h;
    const LayerWeights & w;
    int layer;
    ggml_tensor * positions;     // [n_tokens] i32
    ggml_tensor * rope_factors;  // [rope.n_dims / 2] f32 or null
    Attention & attention;
    bool last_token_only;  // what follows the attention is wanted for the last token alone

    ggml_tensor * norm(ggml_tensor * x, ggml_tensor * weight) const;  // RMS norm over dimension 0, times weight
    ggml_tensor * linear(ggml_tensor * x, ggml_tensor * weight, ggml_tensor * bias = nullptr) const;
    Heads project_heads(ggml_tensor * x) const;  // q, k, v from their own matrices, biases if there are any
    Heads split_heads(ggml_tensor * qkv) const;  // the same from one fused product
    ggml_tensor * attend(Heads heads) const;     // turns q and k, attends, projects: [n_embd, n_queries]
    ggml_tensor * residual(ggml_tensor * x,
                           ggml_tensor * branch) const;  // x + branch, where branch may hold the last token only
    ggml_tensor * gated_ffn(ggml_tensor * x, Activation activation) const;
    ggml_tensor * moe_ffn(ggml_tensor * x) const;  // each token through the experts that the router gives most weight

  private:
    ggml_tensor * rope(ggml_tensor * x) const;
    Heads turned(const Heads & heads) const;
    ggml_tensor * expert_weights(ggml_tensor * probs, ggml_tensor * chosen) const;  // [n_experts_used, n_tokens]
};

}  // namespace zipcache

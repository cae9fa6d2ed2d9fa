#include "graph/forward.h"

namespace zipcache {
namespace {

constexpr int kNodesPerLayer = 64;

// Stores the token's row in place and attends over the layer's whole cache.
class DecodeAttention : public Attention {
  public:
    DecodeAttention(const KvCache & cache, ggml_tensor * row, ggml_tensor * n_tokens, int n_splits)
        : cache_(cache), row_(row), n_tokens_(n_tokens), n_splits_(n_splits) {}

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph *, int layer, ggml_tensor * q, ggml_tensor * k,
                         ggml_tensor * v) override {
        return ggml_zipcache_attend_kv_node(ctx, cache_.layer(layer), q, store(ctx, cache_.k(layer), k),
                                            store(ctx, cache_.v(layer), v), n_tokens_, n_splits_);
    }

  private:
    ggml_tensor * store(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * heads) const {
        return ggml_set_rows(ctx, rows, ggml_permute(ctx, heads, 0, 2, 1, 3), row_);
    }

    const KvCache & cache_;
    ggml_tensor * row_;
    ggml_tensor * n_tokens_;
    int n_splits_;
};

}  // namespace

DecodeGraph::DecodeGraph(const Network & network, Executor & executor, int n_ctx)
    : network_(network),
      executor_(executor),
      n_ctx_(n_ctx),
      memory_(size_t(network.h.n_layers + 1) * kNodesPerLayer),
      token_(GGML_TYPE_I32, 1),
      position_(GGML_TYPE_I32, 1),
      row_(GGML_TYPE_I32, 1),
      n_tokens_(GGML_TYPE_I32, 1) {}

void DecodeGraph::build(const KvCache & cache) {
    const HParams & h = network_.h;
    ggml_context * ctx = memory_.begin();
    DecodeAttention attention(cache, row_.tensor, n_tokens_.tensor, executor_.n_threads());
    ggml_tensor * x = ggml_get_rows(ctx, network_.token_embedding, token_.tensor);
    if (h.embedding_scale != 1.0f) {
        x = ggml_scale(ctx, x, h.embedding_scale);
    }
    for (int i = 0; i < h.n_layers; ++i) {
        x = network_.architecture->layer({ctx, memory_.graph(), h, network_.layers[i], i, position_.tensor,
                                          network_.rope_factors_for(n_ctx_), attention, false},
                                         x);
    }
    x = ggml_mul(ctx, ggml_rms_norm(ctx, x, h.norm_epsilon), network_.output_norm);
    logits_ = ggml_mul_mat(ctx, network_.output, x);
    ggml_set_output(logits_);
    ggml_build_forward_expand(memory_.graph(), logits_);
    memory_.allocate();
    built_for_ = cache.version();
}

const float * DecodeGraph::run(const KvCache & cache, int32_t token, const std::atomic<bool> & cancel) {
    if (built_for_ != cache.version()) {
        build(cache);
    }
    *token_.i32() = token;
    *position_.i32() = static_cast<int32_t>(cache.size());
    *row_.i32() = static_cast<int32_t>(cache.window_size());
    *n_tokens_.i32() = static_cast<int32_t>(cache.window_size() + 1);
    executor_.compute(memory_.graph(), cancel);
    return static_cast<const float *>(logits_->data);
}

}  // namespace zipcache

#include "graph/forward.h"

namespace zipcache {
namespace {

constexpr int kNodesPerLayer = 64;

class DecodeAttention : public Attention {
  public:
    DecodeAttention(const KvCache & cache, ggml_tensor * row, ggml_tensor * n_tokens)
        : cache_(cache), row_(row), n_tokens_(n_tokens) {}

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph *, int layer, ggml_tensor * q, ggml_tensor * k,
                         ggml_tensor * v) override {
        return cache_.view(layer).attend(ctx, q, k, v, {cache_.k(layer), cache_.v(layer), row_, n_tokens_});
    }

  private:
    const KvCache & cache_;
    ggml_tensor * row_;
    ggml_tensor * n_tokens_;
};

}  // namespace

DecodeGraph::DecodeGraph(const Network & network, Executor & executor, int n_ctx)
    : network_(network),
      executor_(executor),
      n_ctx_(n_ctx),
      memory_(executor.device(), size_t(network.h.n_layers + 1) * kNodesPerLayer),
      inputs_(executor.device(), std::vector<int64_t>(kInputs, 1)),
      logits_(executor.device(), network.h.n_vocab * sizeof(float)) {}

void DecodeGraph::build(const KvCache & cache) {
    const HParams & h = network_.h;
    recording_.reset();
    ggml_context * ctx = memory_.begin();
    DecodeAttention attention(cache, inputs_.tensor(kRow), inputs_.tensor(kNTokens));
    ggml_tensor * x = ggml_get_rows(ctx, network_.token_embedding, inputs_.tensor(kToken));
    if (h.embedding_scale != 1.0f) {
        x = ggml_scale(ctx, x, h.embedding_scale);
    }
    for (int i = 0; i < h.n_layers; ++i) {
        x = network_.architecture->layer({ctx, memory_.graph(), h, network_.layers[i], i, inputs_.tensor(kPosition),
                                          network_.rope_factors_for(n_ctx_), attention, false},
                                         x);
    }
    x = ggml_mul(ctx, ggml_rms_norm(ctx, x, h.norm_epsilon), network_.output_norm);
    x = ggml_mul_mat(ctx, network_.output, x);
    ggml_set_output(x);
    ggml_build_forward_expand(memory_.graph(), x);
    memory_.allocate();
    recording_ = executor_.device().record(memory_.graph(), inputs_.transfer(), logits_.from(x));
    built_for_ = cache.version();
}

const float * DecodeGraph::run(const KvCache & cache, int32_t token, const std::atomic<bool> & cancel) {
    if (built_for_ != cache.version()) {
        build(cache);
    }
    *inputs_.host(kToken) = token;
    *inputs_.host(kPosition) = static_cast<int32_t>(cache.size());
    *inputs_.host(kRow) = static_cast<int32_t>(cache.window_size());
    *inputs_.host(kNTokens) = static_cast<int32_t>(cache.window_size() + 1);
    executor_.run(*recording_, cancel);
    return static_cast<const float *>(logits_.host());
}

}  // namespace zipcache

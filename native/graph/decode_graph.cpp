#include <algorithm>
#include <iterator>

#include "graph/forward.h"

namespace zipcache {
namespace {

constexpr int kNodesPerLayer = 64;

class DecodeAttention : public Attention {
  public:
    DecodeAttention(const std::vector<std::unique_ptr<BatchView>> & layers, ggml_tensor * n_tokens)
        : layers_(layers), n_tokens_(n_tokens) {}

    bool turns(int layer) const override { return layers_[layer]->turns(); }

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph *, int layer, const Heads & heads,
                         const Rope * rope) override {
        return layers_[layer]->attend(ctx, {heads.q, heads.k, heads.v, n_tokens_}, rope);
    }

  private:
    const std::vector<std::unique_ptr<BatchView>> & layers_;
    ggml_tensor * n_tokens_;
};

}  // namespace

DecodeGraph::DecodeGraph(const Network & network, Executor & executor, int n_ctx, int n_sequences)
    : network_(network),
      executor_(executor),
      n_ctx_(n_ctx),
      n_sequences_(n_sequences),
      memory_(executor.device(), size_t(network.h.n_layers + 1) * kNodesPerLayer),
      inputs_(executor.device(), std::vector<int64_t>(kInputs, n_sequences)),
      logits_(executor.device(), size_t(n_sequences) * network.h.n_vocab * sizeof(float)) {}

bool DecodeGraph::built_for(const std::vector<Step> & steps) const {
    return std::equal(steps.begin(), steps.end(), versions_.begin(), versions_.end(),
                      [](const Step & step, uint64_t version) { return step.cache->version() == version; });
}

void DecodeGraph::build(const std::vector<Step> & steps) {
    const HParams & h = network_.h;
    versions_.clear();
    recording_.reset();
    layers_.clear();
    for (int i = 0; i < h.n_layers; ++i) {
        std::vector<const LayerView *> views;
        views.reserve(steps.size());
        for (const Step & step : steps) {
            views.push_back(&step.cache->view(i));
        }
        layers_.push_back(executor_.device().batch_view(views));
    }
    ggml_context * ctx = memory_.begin();
    DecodeAttention attention(layers_, inputs_.tensor(kNTokens));
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
    std::transform(steps.begin(), steps.end(), std::back_inserter(versions_),
                   [](const Step & step) { return step.cache->version(); });
}

const float * DecodeGraph::run(const std::vector<Step> & steps, const std::atomic<bool> & cancel) {
    if (!built_for(steps)) {
        build(steps);
    }
    for (int i = 0; i < n_sequences_; ++i) {
        const KvCache & cache = *steps[i].cache;
        inputs_.host(kToken)[i] = steps[i].token;
        inputs_.host(kPosition)[i] = static_cast<int32_t>(cache.size());
        inputs_.host(kNTokens)[i] = static_cast<int32_t>(cache.window_size() + 1);
    }
    for (const auto & layer : layers_) {
        layer->refresh();
    }
    executor_.run(*recording_, cancel);
    return static_cast<const float *>(logits_.host());
}

}  // namespace zipcache

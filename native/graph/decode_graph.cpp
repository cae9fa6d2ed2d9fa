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

std::vector<InputShape> DecodeGraph::Part::shapes(const Stage & stage, const HParams & h, int n_sequences) {
    std::vector<InputShape> shapes(kHidden, {n_sequences});
    if (stage.first > 0) {
        shapes.push_back({h.n_embd, n_sequences, GGML_TYPE_F32});
    }
    return shapes;
}

DecodeGraph::Part::Part(const Stage & stage, const HParams & h, int n_sequences)
    : stage(stage),
      is_last(stage.end == h.n_layers),
      memory(*stage.device, size_t(stage.n_layers() + 1) * kNodesPerLayer),
      inputs(*stage.device, shapes(stage, h, n_sequences)),
      out(*stage.device, size_t(n_sequences) * (is_last ? h.n_vocab : h.n_embd) * sizeof(float)) {}

DecodeGraph::DecodeGraph(const Network & network, Executor & executor, int n_ctx, int n_sequences)
    : network_(network), executor_(executor), n_ctx_(n_ctx), n_sequences_(n_sequences) {
    for (const Stage & stage : executor.stages(network.h.n_layers)) {
        parts_.emplace_back(stage, network.h, n_sequences);
    }
}

bool DecodeGraph::built_for(const std::vector<Step> & steps) const {
    return std::equal(steps.begin(), steps.end(), versions_.begin(), versions_.end(),
                      [](const Step & step, uint64_t version) { return step.cache->version() == version; });
}

void DecodeGraph::build(const std::vector<Step> & steps) {
    versions_.clear();
    for (Part & part : parts_) {
        part.recording.reset();
    }
    layers_.clear();
    for (Part & part : parts_) {
        for (int i = part.stage.first; i < part.stage.end; ++i) {
            std::vector<const LayerView *> views;
            views.reserve(steps.size());
            for (const Step & step : steps) {
                views.push_back(&step.cache->view(i));
            }
            layers_.push_back(part.stage.device->batch_view(views));
        }
        build(part);
    }
    std::transform(steps.begin(), steps.end(), std::back_inserter(versions_),
                   [](const Step & step) { return step.cache->version(); });
}

void DecodeGraph::build(Part & part) {
    const HParams & h = network_.h;
    ggml_context * ctx = part.memory.begin();
    DecodeAttention attention(layers_, part.inputs.tensor(kNTokens));
    ggml_tensor * x;
    if (part.stage.first == 0) {
        x = ggml_get_rows(ctx, network_.token_embedding, part.inputs.tensor(kToken));
        x = h.embedding_scale != 1.0f ? ggml_scale(ctx, x, h.embedding_scale) : x;
    } else {
        x = part.inputs.tensor(kHidden);
    }
    for (int i = part.stage.first; i < part.stage.end; ++i) {
        x = network_.architecture->layer(
            {*part.stage.device, ctx, part.memory.graph(), h, network_.layers[i], i, part.inputs.tensor(kPosition),
             network_.rope_factors_for(i, n_ctx_), attention, false},
            x);
    }
    if (part.is_last) {
        x = ggml_mul(ctx, ggml_rms_norm(ctx, x, h.norm_epsilon), network_.output_norm);
        x = ggml_mul_mat(ctx, network_.output, x);
    }
    ggml_set_output(x);
    ggml_build_forward_expand(part.memory.graph(), x);
    part.memory.allocate();
    part.recording = part.stage.device->record(part.memory.graph(), part.inputs.transfer(), part.out.from(x));
}

const float * DecodeGraph::run(const std::vector<Step> & steps, const std::atomic<bool> & cancel) {
    if (!built_for(steps)) {
        build(steps);
    }
    for (const Part & part : parts_) {
        for (int i = 0; i < n_sequences_; ++i) {
            const KvCache & cache = *steps[i].cache;
            part.inputs.host(kToken)[i] = steps[i].token;
            part.inputs.host(kPosition)[i] = static_cast<int32_t>(cache.size());
            part.inputs.host(kNTokens)[i] = static_cast<int32_t>(cache.window_size() + 1);
        }
    }
    for (const auto & layer : layers_) {
        layer->refresh();
    }
    const float * out = nullptr;
    for (const Part & part : parts_) {
        if (out) {
            std::copy_n(out, int64_t(n_sequences_) * network_.h.n_embd, part.inputs.host<float>(kHidden));
        }
        executor_.run(*part.recording, cancel);
        out = static_cast<const float *>(part.out.host());
    }
    return out;
}

}  // namespace zipcache

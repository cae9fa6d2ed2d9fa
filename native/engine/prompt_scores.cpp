#include "engine/prompt_scores.h"

#include <algorithm>
#include <atomic>

#include "common/error.h"
#include "engine/prompt_probes.h"
#include "engine/session.h"
#include "kv/saliency.h"

namespace zipcache {
namespace {

void check_length(const Model & model, size_t n_tokens) {
    const int64_t most = std::min<int64_t>(model.hparams().n_ctx_train, Session::stretch_after(0));
    if (n_tokens < 1 || n_tokens > size_t(most)) {
        throw ArgumentError("score_prompt got " + std::to_string(n_tokens) + " tokens; accepted: 1 to " +
                            std::to_string(most));
    }
}

// Keys and values of one layer, whole blocks of rows, as its prefill stores them.
class LayerRows {
  public:
    LayerRows(Device & device, const HParams & h, int64_t n_tokens)
        : capacity_(device.whole_blocks(n_tokens)),
          k_(device, GGML_TYPE_F16, h.head_dim, capacity_, h.n_kv_heads),
          v_(device, GGML_TYPE_F16, h.head_dim, capacity_, h.n_kv_heads) {
        if (!device.is_host()) {  // attention looks at masked rows, too, and 0 times NaN would show
            k_.memory.clear();
            v_.memory.clear();
        }
    }
    PrefillRows prefill() const { return {k_.tensor, v_.tensor, 0, {}}; }

  private:
    int64_t capacity_;
    OwnTensor k_, v_;  // [head_dim, capacity, n_kv_heads]
};

// The device's data, where the host reads them; `copy` holds them if that is elsewhere.
template <class T>
const T * on_host(Device & device, const void * data, size_t n, std::vector<T> & copy) {
    if (device.is_shared()) {
        return static_cast<const T *>(data);
    }
    copy.resize(n);
    device.read(copy.data(), data, n * sizeof(T));
    return copy.data();
}

}  // namespace

PromptScores score_prompt(Model & model, const int32_t * tokens, size_t n_tokens, const KvOptions & options,
                          const Progress & progress) {
    check_length(model, n_tokens);
    model.check_tokens(tokens, n_tokens);
    const HParams & h = model.hparams();
    const auto policy = make_policy(options, h);
    const auto n = static_cast<int64_t>(n_tokens);
    const std::atomic<bool> cancel{false};
    const Parallel parallel = [&](int count, const std::function<void(int)> & task) {
        model.executor().parallel(count, task);
    };

    PrefillGraphs graphs(model.network(), model.executor(), h.n_ctx_train);
    graphs.embed(tokens, n, cancel);
    graphs.watch(prompt_probes(model, policy->options, tokens, n, 0));

    PromptScores all;
    all.probes = graphs.probes();
    Probes probes;
    probes.row = all.probes;
    for (const Stage & stage : model.stages()) {
        Device & device = *stage.device;
        const LayerRows layer_rows(device, h, n);
        const PrefillRows rows = layer_rows.prefill();
        for (int layer = stage.first; layer < stage.end; ++layer) {
            const int64_t chunk = graphs.chunk(layer, n);
            for (int64_t first = 0; first < n; first += chunk) {
                graphs.layer(rows, layer, 0, first, std::min(chunk, n - first), cancel);
            }
            std::vector<uint16_t> keys;
            std::vector<float> queries;
            const auto * k = on_host(device, rows.k->data, ggml_nelements(rows.k), keys);
            probes.q = on_host(device, graphs.probe_q(), probes.row.size() * h.n_heads * h.head_dim, queries);
            const Rows seen = {n, rows.k->ne[1], k, nullptr, h.window_of(layer)};
            const Scores scores = score_rows(seen, 0, n, probes, h, parallel);
            all.score.insert(all.score.end(), scores.score.begin(), scores.score.end());
            all.seen.insert(all.seen.end(), scores.seen.begin(), scores.seen.end());
            if (progress) {
                progress(float(layer + 1) / float(h.n_layers));
            }
        }
    }
    return all;
}

}  // namespace zipcache

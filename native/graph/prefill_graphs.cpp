#include <algorithm>
#include <numeric>

#include "graph/forward.h"

namespace zipcache {
namespace {

constexpr int kMaxNodes = 256;  // one layer

// Rows of a layer that a stretch of queries sees.
struct Visible {
    int64_t first_key;
    int64_t n_seen;
    int64_t n_keys;  // those and what fills the last block
};

// New tokens [first, first + n).
Visible visible_keys(const PrefillRows & rows, int64_t first, int64_t n, int window, int block) {
    const int64_t from = rows.first_seen(first, window) / block * block;
    const int64_t n_seen = rows.n_past + first + n - from;
    return {from, n_seen, std::min((n_seen + block - 1) / block * block, rows.k->ne[1] - from)};
}

// What each query sees of those keys, [2, n]: causal, and through a sliding window.
void fill_spans(int32_t * spans, const PrefillRows & rows, Visible keys, int64_t first, int64_t n, int window) {
    for (int64_t i = 0; i < n; ++i) {
        spans[2 * i] = static_cast<int32_t>(rows.first_seen(first + i, window) - keys.first_key);
        spans[2 * i + 1] = static_cast<int32_t>(rows.n_past + first + i + 1 - keys.first_key);
    }
}

// Stores the chunk's rows behind those already there, then ggml's flash attention over all of them.
class PrefillAttention : public Attention {
  public:
    PrefillAttention(const PrefillRows & rows, int64_t first, Visible keys, ggml_tensor * mask, float scale,
                     bool last_only)
        : rows_(rows), first_(first), keys_(keys), mask_(mask), scale_(scale), last_only_(last_only) {}

    // The queries of some of the chunk's tokens are copied to `to` [n_heads * head_dim, n].
    void watch(ggml_tensor * tokens, ggml_tensor * to) {
        watched_ = tokens;
        watched_q_ = to;
    }

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph * graph, int, const Heads & heads, const Rope *) override {
        // expanded here, so that they run before the attention, which depends on the memory and not on the nodes
        ggml_build_forward_expand(graph, store(ctx, rows_.k, heads.k));
        ggml_build_forward_expand(graph, store(ctx, rows_.v, heads.v));
        if (watched_) {
            ggml_tensor * flat = ggml_reshape_2d(ctx, heads.q, heads.q->ne[0] * heads.q->ne[1], heads.q->ne[2]);
            ggml_build_forward_expand(graph, ggml_cpy(ctx, ggml_get_rows(ctx, flat, watched_), watched_q_));
        }
        ggml_tensor * q = ggml_permute(ctx, heads.q, 0, 2, 1, 3);
        if (last_only_) {
            q = ggml_view_3d(ctx, q, q->ne[0], 1, q->ne[2], q->nb[1], q->nb[2], (q->ne[1] - 1) * q->nb[1]);
        }
        ggml_tensor * out =
            ggml_flash_attn_ext(ctx, q, cached(ctx, rows_.k), cached(ctx, rows_.v), mask_, scale_, 0.0f, 0.0f);
        return ggml_reshape_2d(ctx, out, out->ne[0] * out->ne[1], out->ne[2]);
    }

  private:
    ggml_tensor * store(ggml_context * ctx, ggml_tensor * rows, ggml_tensor * heads) const {
        ggml_tensor * place = ggml_view_3d(ctx, rows, rows->ne[0], heads->ne[2], rows->ne[2], rows->nb[1], rows->nb[2],
                                           first_ * rows->nb[1]);
        return ggml_cpy(ctx, ggml_permute(ctx, heads, 0, 2, 1, 3), place);
    }

    ggml_tensor * cached(ggml_context * ctx, ggml_tensor * rows) const {
        return ggml_view_3d(ctx, rows, rows->ne[0], keys_.n_keys, rows->ne[2], rows->nb[1], rows->nb[2],
                            keys_.first_key * rows->nb[1]);
    }

    const PrefillRows & rows_;
    int64_t first_;
    Visible keys_;
    ggml_tensor * mask_;
    float scale_;
    bool last_only_;
    ggml_tensor * watched_ = nullptr;
    ggml_tensor * watched_q_ = nullptr;
};

ggml_tensor * first_elements(ggml_context * ctx, ggml_tensor * array, int64_t n) {
    return ggml_view_1d(ctx, array, n, 0);
}

}  // namespace

PrefillGraphs::Place::Place(const Stage & stage)
    : stage(stage),
      memory(*stage.device, kMaxNodes),
      inputs{Inputs(*stage.device, shapes()), Inputs(*stage.device, shapes())} {}

std::vector<InputShape> PrefillGraphs::Place::shapes() const {
    return {{widest()}, {widest()}, {widest()}, {2 * widest()}};
}

void PrefillGraphs::Place::release() {
    hidden = OwnTensor();
    mask = OwnTensor();
    probe_q = OwnTensor();
    if (memory.bytes() > 0) {
        memory = GraphMemory(*stage.device, kMaxNodes);
    }
}

PrefillGraphs::PrefillGraphs(const Network & network, Executor & executor, int n_ctx)
    : network_(network), executor_(executor), n_ctx_(n_ctx), logits_(network.h.n_vocab) {
    for (const Stage & stage : executor.stages(network.h.n_layers)) {
        places_.emplace_back(stage);
    }
}

int64_t PrefillGraphs::chunk_over(int64_t n_keys, int64_t widest) {
    constexpr int64_t kMost = int64_t(1) << 25, kLeast = 256;  // of the mask's elements; tokens
    int64_t chunk = widest;
    while (chunk > kLeast && chunk * n_keys > kMost) {
        chunk /= 2;
    }
    return chunk;
}

int64_t PrefillGraphs::chunk(int layer, int64_t n_keys) const {
    const auto place =
        std::find_if(places_.begin(), places_.end(), [&](const Place & p) { return layer < p.stage.end; });
    return chunk_over(n_keys, place->widest());
}

void PrefillGraphs::watch(std::vector<int64_t> probes) {
    probes_ = std::move(probes);
    make_probe_q();
}

void PrefillGraphs::make_probe_q() {
    here().probe_q = OwnTensor();
    if (!probes_.empty()) {
        here().probe_q =
            OwnTensor(*here().stage.device, GGML_TYPE_F32, int64_t(network_.h.n_heads) * network_.h.head_dim,
                      static_cast<int64_t>(probes_.size()));
    }
}

const float * PrefillGraphs::probe_q() const {
    const ggml_tensor * all = here().probe_q.tensor;
    return all ? static_cast<const float *>(all->data) : nullptr;
}

ggml_tensor * PrefillGraphs::hidden(ggml_context * ctx, int64_t first, int64_t n) const {
    ggml_tensor * all = here().hidden.tensor;
    return ggml_view_2d(ctx, all, all->ne[0], n, all->nb[1], first * all->nb[1]);
}

// Makes room in a place for a stretch of tokens, and leaves the one where it was.
void PrefillGraphs::enter(size_t place, int64_t n_tokens) {
    if (at_ != place) {
        here().release();
        at_ = place;
    }
    Device & device = *here().stage.device;
    here().memory = GraphMemory(device, kMaxNodes);  // a stretch further on has smaller graphs
    if (OwnTensor & hidden = here().hidden; !hidden.tensor || hidden.tensor->ne[1] != n_tokens) {
        hidden = OwnTensor();
        hidden = OwnTensor(device, GGML_TYPE_F32, network_.h.n_embd, n_tokens);
    }
}

// The stretch goes from the host on to the next stage.
void PrefillGraphs::cross() {
    const OwnTensor hidden = std::move(here().hidden);
    enter(at_ + 1, hidden.tensor->ne[1]);
    make_probe_q();
    here().stage.device->write(here().hidden.tensor->data, hidden.tensor->data, ggml_nbytes(hidden.tensor));
}

void PrefillGraphs::embed(const int32_t * tokens, int64_t n_tokens, const std::atomic<bool> & cancel) {
    const HParams & h = network_.h;
    enter(0, n_tokens);
    Place & p = here();
    for (int64_t first = 0; first < n_tokens; first += p.widest()) {
        const int64_t n = std::min(p.widest(), n_tokens - first);
        const Inputs & inputs = p.next_inputs();
        std::copy_n(tokens + first, n, inputs.host(kTokens));
        inputs.send();
        ggml_context * ctx = p.memory.begin();
        ggml_tensor * x = ggml_get_rows(ctx, network_.token_embedding, first_elements(ctx, inputs.tensor(kTokens), n));
        x = h.embedding_scale != 1.0f ? ggml_scale(ctx, x, h.embedding_scale) : x;
        ggml_build_forward_expand(p.memory.graph(), ggml_cpy(ctx, x, hidden(ctx, first, n)));
        p.memory.allocate();
        executor_.start(*p.stage.device, p.memory.graph(), cancel);
    }
}

void PrefillGraphs::layer(const PrefillRows & rows, int layer, int64_t position, int64_t first, int64_t n,
                          const std::atomic<bool> & cancel) {
    if (layer == here().stage.end) {
        cross();
    }
    const HParams & h = network_.h;
    Place & p = here();
    const int64_t n_tokens = p.hidden.tensor->ne[1];
    const bool last_layer = layer == h.n_layers - 1;
    const bool last_chunk = first + n == n_tokens;
    const int window = h.window_of(layer);
    const Inputs & inputs = p.next_inputs();
    std::iota(inputs.host(kPositions), inputs.host(kPositions) + n, static_cast<int32_t>(position + first));

    ggml_context * ctx = p.memory.begin();
    // one query at the end sees all keys of its own range
    const int64_t n_queries = last_layer ? 1 : n;
    const int64_t first_query = first + n - n_queries;
    const Visible keys = visible_keys(rows, first_query, n_queries, window, p.stage.device->key_block());
    ggml_tensor * mask = nullptr;
    if (!last_layer || keys.n_keys > keys.n_seen) {
        fill_spans(inputs.host(kSpans), rows, keys, first_query, n_queries, window);
        mask = masked(ctx, inputs.tensor(kSpans), keys.n_keys, n_queries, rows.n_past + n_tokens);
    }
    PrefillAttention attention(rows, rows.n_past + first, keys, mask, h.attention_scale, last_layer);
    const auto probe = std::lower_bound(probes_.begin(), probes_.end(), first);
    const auto end = std::lower_bound(probe, probes_.end(), first + n);
    if (probe != end) {
        std::transform(probe, end, inputs.host(kProbeRows), [&](int64_t t) { return static_cast<int32_t>(t - first); });
        ggml_tensor * all = p.probe_q.tensor;
        attention.watch(
            first_elements(ctx, inputs.tensor(kProbeRows), end - probe),
            ggml_view_2d(ctx, all, all->ne[0], end - probe, all->nb[1], (probe - probes_.begin()) * all->nb[1]));
    }
    inputs.send();
    ggml_tensor * x = hidden(ctx, first, n);
    ggml_tensor * y = network_.architecture->layer({*p.stage.device, ctx, p.memory.graph(), h, network_.layers[layer],
                                                    layer, first_elements(ctx, inputs.tensor(kPositions), n),
                                                    network_.rope_factors_for(layer, n_ctx_), attention, last_layer},
                                                   x);
    if (!last_layer) {
        ggml_build_forward_expand(p.memory.graph(), ggml_cpy(ctx, y, x));
    } else if (last_chunk) {
        ggml_build_forward_expand(p.memory.graph(), ggml_cpy(ctx, y, hidden(ctx, first + n - 1, 1)));
    }
    p.memory.allocate();
    executor_.start(*p.stage.device, p.memory.graph(), cancel);
}

// [n_keys, n_queries] f16, filled on the device.
ggml_tensor * PrefillGraphs::masked(ggml_context * ctx, ggml_tensor * spans, int64_t n_keys, int64_t n_queries,
                                    int64_t most_keys) {
    Place & p = here();
    if (!p.mask.tensor || p.mask.tensor->ne[0] < n_keys * n_queries) {
        p.mask = OwnTensor();
        // at once what the last chunk takes: memory that grows by copies leaves holes
        p.mask = OwnTensor(*p.stage.device, GGML_TYPE_F16, std::max(n_keys, most_keys) * n_queries);
    }
    ggml_tensor * mask = ggml_view_2d(ctx, p.mask.tensor, n_keys, n_queries, n_keys * sizeof(ggml_fp16_t), 0);
    return p.stage.device->fill_mask(ctx, mask, first_elements(ctx, spans, 2 * n_queries));
}

const float * PrefillGraphs::logits(const std::atomic<bool> & cancel) {
    Place & p = here();
    ggml_context * ctx = p.memory.begin();
    ggml_tensor * x = hidden(ctx, p.hidden.tensor->ne[1] - 1, 1);
    x = ggml_mul(ctx, ggml_rms_norm(ctx, x, network_.h.norm_epsilon), network_.output_norm);
    ggml_tensor * logits = ggml_mul_mat(ctx, network_.output, x);
    ggml_set_output(logits);
    ggml_build_forward_expand(p.memory.graph(), logits);
    p.memory.allocate();
    executor_.compute(*p.stage.device, p.memory.graph(), cancel);
    p.stage.device->read(logits_.data(), logits->data, ggml_nbytes(logits));
    return logits_.data();
}

size_t PrefillGraphs::bytes() const {
    const Place & p = here();
    return p.hidden.bytes() + p.mask.bytes() + p.probe_q.bytes() + p.memory.bytes() + logits_.size() * sizeof(float);
}

void PrefillGraphs::release() {
    probes_.clear();
    here().release();
}

}  // namespace zipcache

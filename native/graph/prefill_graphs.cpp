#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "graph/forward.h"

namespace zipcache {
namespace {

constexpr int kMaxNodes = 256;  // one layer

// Rows of a layer that a stretch of queries sees.
struct Visible {
    int64_t first_key;
    int64_t n_keys;
};

// New tokens [first, first + n).
Visible visible_keys(const PrefillRows & rows, int64_t first, int64_t n, int window) {
    const int64_t from = rows.first_seen(first, window);
    return {from, rows.n_past + first + n - from};
}

// Causal (and sliding-window) mask, [n_keys, n] f16: 0 where query i sees a key, -inf elsewhere.
void fill_mask(ggml_fp16_t * mask, const PrefillRows & rows, Visible keys, int64_t first, int64_t n, int window) {
    const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
    for (int64_t i = 0; i < n; ++i, mask += keys.n_keys) {
        const int64_t end = rows.n_past + first + i + 1 - keys.first_key;
        const int64_t begin = rows.first_seen(first + i, window) - keys.first_key;
        std::fill(mask, mask + begin, hidden);
        std::memset(mask + begin, 0, (end - begin) * sizeof(ggml_fp16_t));
        std::fill(mask + end, mask + keys.n_keys, hidden);
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

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph * graph, int, ggml_tensor * q, ggml_tensor * k,
                         ggml_tensor * v) override {
        // expanded here, so that they run before the attention, which depends on the memory and not on the nodes
        ggml_build_forward_expand(graph, store(ctx, rows_.k, k));
        ggml_build_forward_expand(graph, store(ctx, rows_.v, v));
        if (watched_) {
            ggml_tensor * flat = ggml_reshape_2d(ctx, q, q->ne[0] * q->ne[1], q->ne[2]);
            ggml_build_forward_expand(graph, ggml_cpy(ctx, ggml_get_rows(ctx, flat, watched_), watched_q_));
        }
        q = ggml_permute(ctx, q, 0, 2, 1, 3);
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

ggml_tensor * first_columns(ggml_context * ctx, const HostTensor & host, int64_t n) {
    return ggml_view_1d(ctx, host.tensor, n, 0);
}

}  // namespace

PrefillGraphs::PrefillGraphs(const Network & network, Executor & executor, int n_ctx)
    : network_(network),
      executor_(executor),
      n_ctx_(n_ctx),
      memory_(kMaxNodes),
      tokens_(GGML_TYPE_I32, kChunk),
      positions_(GGML_TYPE_I32, kChunk),
      probe_rows_(GGML_TYPE_I32, kChunk) {}

void PrefillGraphs::watch(std::vector<int64_t> probes) {
    probes_ = std::move(probes);
    probe_q_ = HostTensor();
    if (!probes_.empty()) {
        probe_q_ = HostTensor(GGML_TYPE_F32, int64_t(network_.h.n_heads) * network_.h.head_dim,
                              static_cast<int64_t>(probes_.size()));
    }
}

const float * PrefillGraphs::probe_q() const {
    return probe_q_.tensor ? static_cast<const float *>(probe_q_.tensor->data) : nullptr;
}

ggml_tensor * PrefillGraphs::hidden(ggml_context * ctx, int64_t first, int64_t n) const {
    ggml_tensor * all = hidden_.tensor;
    return ggml_view_2d(ctx, all, all->ne[0], n, all->nb[1], first * all->nb[1]);
}

void PrefillGraphs::embed(const int32_t * tokens, int64_t n_tokens, const std::atomic<bool> & cancel) {
    const HParams & h = network_.h;
    if (!hidden_.tensor || hidden_.tensor->ne[1] != n_tokens) {
        hidden_ = HostTensor();
        hidden_ = HostTensor(GGML_TYPE_F32, h.n_embd, n_tokens);
    }
    for (int64_t first = 0; first < n_tokens; first += kChunk) {
        const int64_t n = std::min<int64_t>(kChunk, n_tokens - first);
        std::copy_n(tokens + first, n, tokens_.i32());
        ggml_context * ctx = memory_.begin();
        ggml_tensor * x = ggml_get_rows(ctx, network_.token_embedding, first_columns(ctx, tokens_, n));
        x = h.embedding_scale != 1.0f ? ggml_scale(ctx, x, h.embedding_scale) : x;
        ggml_build_forward_expand(memory_.graph(), ggml_cpy(ctx, x, hidden(ctx, first, n)));
        memory_.allocate();
        executor_.compute(memory_.graph(), cancel);
    }
}

void PrefillGraphs::layer(const PrefillRows & rows, int layer, int64_t position, int64_t first, int64_t n,
                          const std::atomic<bool> & cancel) {
    const HParams & h = network_.h;
    const bool last_layer = layer == h.n_layers - 1;
    const bool last_chunk = first + n == hidden_.tensor->ne[1];
    std::iota(positions_.i32(), positions_.i32() + n, static_cast<int32_t>(position + first));

    ggml_context * ctx = memory_.begin();
    const int window = h.window_of(layer);
    // one query at the end needs no mask: it sees all keys of its own range
    const Visible keys =
        last_layer ? visible_keys(rows, first + n - 1, 1, window) : visible_keys(rows, first, n, window);
    ggml_tensor * mask = nullptr;
    if (!last_layer) {
        if (!mask_.tensor || mask_.tensor->ne[0] < keys.n_keys * n) {
            mask_ = HostTensor();
            // at once what the last chunk takes: memory that grows by copies leaves holes
            mask_ = HostTensor(GGML_TYPE_F16, (rows.n_past + hidden_.tensor->ne[1]) * n);
        }
        mask = ggml_view_2d(ctx, mask_.tensor, keys.n_keys, n, keys.n_keys * sizeof(ggml_fp16_t), 0);
        fill_mask(static_cast<ggml_fp16_t *>(mask_.tensor->data), rows, keys, first, n, window);
    }
    PrefillAttention attention(rows, rows.n_past + first, keys, mask, h.attention_scale, last_layer);
    const auto probe = std::lower_bound(probes_.begin(), probes_.end(), first);
    const auto end = std::lower_bound(probe, probes_.end(), first + n);
    if (probe != end) {
        std::transform(probe, end, probe_rows_.i32(), [&](int64_t t) { return static_cast<int32_t>(t - first); });
        ggml_tensor * all = probe_q_.tensor;
        attention.watch(
            first_columns(ctx, probe_rows_, end - probe),
            ggml_view_2d(ctx, all, all->ne[0], end - probe, all->nb[1], (probe - probes_.begin()) * all->nb[1]));
    }
    ggml_tensor * x = hidden(ctx, first, n);
    ggml_tensor * y = network_.architecture->layer(
        {ctx, memory_.graph(), h, network_.layers[layer], layer, first_columns(ctx, positions_, n),
         network_.rope_factors_for(n_ctx_), attention, last_layer},
        x);
    if (!last_layer) {
        ggml_build_forward_expand(memory_.graph(), ggml_cpy(ctx, y, x));
    } else if (last_chunk) {
        ggml_build_forward_expand(memory_.graph(), ggml_cpy(ctx, y, hidden(ctx, first + n - 1, 1)));
    }
    memory_.allocate();
    executor_.compute(memory_.graph(), cancel);
}

const float * PrefillGraphs::logits(const std::atomic<bool> & cancel) {
    ggml_context * ctx = memory_.begin();
    ggml_tensor * x = hidden(ctx, hidden_.tensor->ne[1] - 1, 1);
    x = ggml_mul(ctx, ggml_rms_norm(ctx, x, network_.h.norm_epsilon), network_.output_norm);
    ggml_tensor * logits = ggml_mul_mat(ctx, network_.output, x);
    ggml_set_output(logits);
    ggml_build_forward_expand(memory_.graph(), logits);
    memory_.allocate();
    executor_.compute(memory_.graph(), cancel);
    return static_cast<const float *>(logits->data);
}

void PrefillGraphs::release() {
    hidden_ = HostTensor();
    mask_ = HostTensor();
    watch({});
}

}  // namespace zipcache

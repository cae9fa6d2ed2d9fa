#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "graph/executor.h"
#include "graph/network.h"
#include "kv/kv_cache.h"

namespace zipcache {

// A tensor with memory of its own, outside any graph.
struct HostTensor {
    GgmlContext context;
    GgmlBuffer buffer;
    ggml_tensor * tensor = nullptr;

    HostTensor() = default;
    HostTensor(ggml_type type, int64_t n_columns, int64_t n_rows = 1);  // throws ContextError when memory runs out
    int32_t * i32() const { return static_cast<int32_t *>(tensor->data); }
};

// The forward pass of one token: one graph over all layers, built once and reused until the cache moves.
// Its length and position are inputs, so it serves every token.
class DecodeGraph {
  public:
    DecodeGraph(const Network & network, Executor & executor, int n_ctx);

    // Stores the token's keys and values at cache.window_size() (room must have been made) and computes its logits.
    // The caller then counts the token. logits: [n_vocab] f32, valid until the next run.
    const float * run(const KvCache & cache, int32_t token, const std::atomic<bool> & cancel);

  private:
    void build(const KvCache & cache);

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    GraphMemory memory_;
    HostTensor token_;     // [1] i32
    HostTensor position_;  // [1] i32: where the token stands in the context
    HostTensor row_;       // [1] i32: the row of the window that it is stored in
    HostTensor n_tokens_;  // [1] i32: row + 1
    ggml_tensor * logits_ = nullptr;
    uint64_t built_for_ = UINT64_MAX;
};

// The forward pass of many tokens, layer by layer: all tokens pass layer l in chunks before layer l + 1 begins.
class PrefillGraphs {
  public:
    static constexpr int kChunk = 512;  // tokens a graph works on

    PrefillGraphs(const Network & network, Executor & executor, int n_ctx);

    // [n_embd, n_tokens] f32: the hidden states of a stretch of tokens, changed in place by layer().
    void embed(const int32_t * tokens, int64_t n_tokens, const std::atomic<bool> & cancel);
    // Chunk [first, first + n) of the stretch through one layer; the stretch begins at `position` of the context,
    // behind rows.n_past rows. In the last layer only the last token of the stretch goes beyond storing keys and
    // values.
    void layer(const PrefillRows & rows, int layer, int64_t position, int64_t first, int64_t n,
               const std::atomic<bool> & cancel);
    // Queries of these tokens of the stretch (rising) are kept while a layer runs.
    void watch(std::vector<int64_t> probes);
    const std::vector<int64_t> & probes() const { return probes_; }
    const float * probe_q() const;  // [n_probes, n_heads, head_dim] f32, of the layer that ran last
    // Logits of the stretch's last token.
    const float * logits(const std::atomic<bool> & cancel);

    void release();  // frees the hidden states and the mask

  private:
    ggml_tensor * hidden(ggml_context * ctx, int64_t first, int64_t n) const;

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    GraphMemory memory_;
    HostTensor hidden_;     // [n_embd, n_tokens] f32
    HostTensor tokens_;     // [kChunk] i32
    HostTensor positions_;  // [kChunk] i32
    HostTensor mask_;       // room for [n_kv, kChunk] f16
    std::vector<int64_t> probes_;
    HostTensor probe_rows_;  // [kChunk] i32
    HostTensor probe_q_;     // [n_heads * head_dim, n_probes] f32
};

}  // namespace zipcache

#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "device/memory.h"
#include "graph/executor.h"
#include "graph/network.h"
#include "kv/kv_cache.h"

namespace zipcache {

// The forward pass of one token: one graph over all layers, built once and reused until the cache moves.
// Its length and position are inputs, so it serves every token.
class DecodeGraph {
  public:
    DecodeGraph(const Network & network, Executor & executor, int n_ctx);

    // Stores the token's keys and values at cache.window_size() (room must have been made) and computes its logits.
    // The caller then counts the token. logits: [n_vocab] f32, valid until the next run.
    const float * run(const KvCache & cache, int32_t token, const std::atomic<bool> & cancel);

  private:
    enum Input { kToken, kPosition, kRow, kNTokens, kInputs };  // of one element each
    void build(const KvCache & cache);

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    GraphMemory memory_;
    Inputs inputs_;
    Staging logits_;  // [n_vocab] f32
    std::unique_ptr<Recording> recording_;
    uint64_t built_for_ = UINT64_MAX;
};

// The forward pass of many tokens, layer by layer: all tokens pass layer l in chunks before layer l + 1 begins.
class PrefillGraphs {
  public:
    PrefillGraphs(const Network & network, Executor & executor, int n_ctx);

    // [n_embd, n_tokens] f32: the hidden states of a stretch of tokens, changed in place by layer().
    void embed(const int32_t * tokens, int64_t n_tokens, const std::atomic<bool> & cancel);
    // Chunk [first, first + n) of the stretch through one layer; the stretch begins at `position` of the context,
    // behind rows.n_past rows. In the last layer only the last token of the stretch goes beyond storing keys and
    // values.
    void layer(const PrefillRows & rows, int layer, int64_t position, int64_t first, int64_t n,
               const std::atomic<bool> & cancel);
    // Most tokens of one graph over n_keys rows: as many as keep its mask within bounds.
    static int64_t chunk_over(int64_t n_keys, int64_t widest);
    int64_t chunk(int64_t n_keys) const { return chunk_over(n_keys, widest()); }
    // Queries of these tokens of the stretch (rising) are kept while a layer runs.
    void watch(std::vector<int64_t> probes);
    const std::vector<int64_t> & probes() const { return probes_; }
    // [n_probes, n_heads, head_dim] f32 in the device's memory, of the layer that ran last
    const float * probe_q() const;
    // Logits of the stretch's last token.
    const float * logits(const std::atomic<bool> & cancel);

    void release();  // frees the hidden states and the mask

  private:
    ggml_tensor * hidden(ggml_context * ctx, int64_t first, int64_t n) const;
    ggml_tensor * masked(ggml_context * ctx, int64_t n_keys, int64_t n_queries, int64_t most_keys);
    int64_t widest() const { return executor_.device().chunk(); }  // tokens of the widest chunk

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    GraphMemory memory_;
    enum Input { kTokens, kPositions, kProbeRows, kSpans };  // an element for each token of a chunk; kSpans: two
    Inputs inputs_;
    OwnTensor hidden_;  // [n_embd, n_tokens] f32
    OwnTensor mask_;    // room for [n_keys, chunk] f16
    std::vector<int64_t> probes_;
    OwnTensor probe_q_;          // [n_heads * head_dim, n_probes] f32
    std::vector<float> logits_;  // [n_vocab]
};

}  // namespace zipcache

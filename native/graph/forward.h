#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "device/memory.h"
#include "graph/executor.h"
#include "graph/network.h"
#include "kv/kv_cache.h"

namespace zipcache {

// A sequence's next token.
struct Step {
    const KvCache * cache;  // which has room for it
    int32_t token;
};

// The forward pass of one token of each of n sequences: one graph over all layers, which reads the weights once for
// all of them, built once and reused until a cache moves or another takes its place. Lengths and positions are inputs,
// so it serves every token.
class DecodeGraph {
  public:
    DecodeGraph(const Network & network, Executor & executor, int n_ctx, int n_sequences);

    // steps [n_sequences], of different caches. Stores the tokens' keys and values at window_size() of each cache and
    // computes their logits. The caller then counts the tokens. [n_sequences, n_vocab] f32, valid until the next run.
    const float * run(const std::vector<Step> & steps, const std::atomic<bool> & cancel);
    int n_sequences() const { return n_sequences_; }

  private:
    enum Input { kToken, kPosition, kNTokens, kInputs };  // [n_sequences] each
    void build(const std::vector<Step> & steps);
    bool built_for(const std::vector<Step> & steps) const;

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    int n_sequences_;
    GraphMemory memory_;
    Inputs inputs_;
    Staging logits_;                                  // [n_sequences, n_vocab] f32
    std::vector<std::unique_ptr<BatchView>> layers_;  // of the caches it was built for
    std::vector<uint64_t> versions_;                  // [n_sequences], theirs
    std::unique_ptr<Recording> recording_;
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

    // Of memory: hidden states, mask, queries of probes, activations.
    size_t bytes() const;
    void release();  // frees hidden states, mask and activations

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

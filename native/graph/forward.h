#pragma once
#include <array>
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

// The forward pass of one token of each of n sequences: one graph over all layers, or over those of each stage, which
// reads the weights once for all of them, built once and reused until a cache moves or another takes its place. Lengths
// and positions are inputs, so it serves every token.
class DecodeGraph {
  public:
    DecodeGraph(const Network & network, Executor & executor, int n_ctx, int n_sequences);

    // steps [n_sequences], of different caches. Stores the tokens' keys and values at window_size() of each cache and
    // computes their logits. The caller then counts the tokens. [n_sequences, n_vocab] f32, valid until the next run.
    const float * run(const std::vector<Step> & steps, const std::atomic<bool> & cancel);
    int n_sequences() const { return n_sequences_; }

  private:
    // [n_sequences] each; and [n_sequences, n_embd] f32, what comes from the stage before, where there is one
    enum Input { kToken, kPosition, kNTokens, kHidden };
    // The graph of one stage.
    struct Part {
        Part(const Stage & stage, const HParams & h, int n_sequences);
        static std::vector<InputShape> shapes(const Stage & stage, const HParams & h, int n_sequences);

        Stage stage;
        bool is_last;
        GraphMemory memory;
        Inputs inputs;
        Staging out;  // f32: [n_sequences, n_vocab] of the last stage, else hidden states [n_sequences, n_embd]
        std::unique_ptr<Recording> recording;
    };
    void build(const std::vector<Step> & steps);
    void build(Part & part);
    bool built_for(const std::vector<Step> & steps) const;

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    int n_sequences_;
    std::vector<std::unique_ptr<BatchView>> layers_;  // of the caches it was built for
    std::vector<uint64_t> versions_;                  // [n_sequences], theirs
    std::vector<Part> parts_;                         // whose recordings end before the views do
};

// The forward pass of many tokens, layer by layer: all tokens pass layer l in chunks before layer l + 1 begins.
class PrefillGraphs {
  public:
    PrefillGraphs(const Network & network, Executor & executor, int n_ctx);

    // [n_embd, n_tokens] f32: the hidden states of a stretch of tokens, changed in place by layer().
    void embed(const int32_t * tokens, int64_t n_tokens, const std::atomic<bool> & cancel);
    // Chunk [first, first + n) of the stretch through one layer; the stretch begins at `position` of the context,
    // behind rows.n_past rows. In the last layer only the last token of the stretch goes beyond storing keys and
    // values. The first layer of a stage brings the hidden states to its device.
    void layer(const PrefillRows & rows, int layer, int64_t position, int64_t first, int64_t n,
               const std::atomic<bool> & cancel);
    // Most tokens of one graph over n_keys rows: as many as keep its mask within bounds.
    static int64_t chunk_over(int64_t n_keys, int64_t widest);
    int64_t chunk(int layer, int64_t n_keys) const;
    // Queries of these tokens of the stretch (rising) are kept while a layer runs.
    void watch(std::vector<int64_t> probes);
    const std::vector<int64_t> & probes() const { return probes_; }
    // [n_probes, n_heads, head_dim] f32 in the memory of the device of the layer that ran last
    const float * probe_q() const;
    // Logits of the stretch's last token.
    const float * logits(const std::atomic<bool> & cancel);

    // Of memory: hidden states, mask, queries of probes, activations.
    size_t bytes() const;
    void release();  // frees hidden states, mask and activations

  private:
    enum Input { kTokens, kPositions, kProbeRows, kSpans };  // an element for each token of a chunk; kSpans: two
    // What the graphs of one stage work with.
    struct Place {
        explicit Place(const Stage & stage);
        int64_t widest() const { return stage.device->chunk(); }  // tokens of the widest chunk
        std::vector<InputShape> shapes() const;
        Inputs & next_inputs() { return inputs[turn ^= 1]; }
        void release();

        Stage stage;
        GraphMemory memory;
        std::array<Inputs, 2> inputs;  // of the next graph, and of the one that may still run
        int turn = 0;
        OwnTensor hidden;   // [n_embd, n_tokens] f32, while the stretch is here
        OwnTensor mask;     // room for [n_keys, chunk] f16
        OwnTensor probe_q;  // [n_heads * head_dim, n_probes] f32
    };
    Place & here() { return places_[at_]; }
    const Place & here() const { return places_[at_]; }
    void enter(size_t place, int64_t n_tokens);
    void cross();
    void make_probe_q();
    ggml_tensor * hidden(ggml_context * ctx, int64_t first, int64_t n) const;
    ggml_tensor * masked(ggml_context * ctx, ggml_tensor * spans, int64_t n_keys, int64_t n_queries, int64_t most_keys);

    const Network & network_;
    Executor & executor_;
    int n_ctx_;
    std::vector<Place> places_;  // of the stages
    size_t at_ = 0;              // where the stretch is
    std::vector<int64_t> probes_;
    std::vector<float> logits_;  // [n_vocab]
};

}  // namespace zipcache

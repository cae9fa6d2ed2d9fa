#pragma once
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "engine/model.h"
#include "graph/forward.h"
#include "kv/kv_cache.h"

namespace zipcache {

struct SessionStats {
    int64_t prefill_tokens = 0;
    double prefill_seconds = 0;
    size_t scratch_bytes = 0;  // most that a prefill took beside the cache
    int64_t decode_tokens = 0;
    double decode_seconds = 0;
    // Of prefill_seconds, while time_cache() is on and the policy compresses: probes chosen and scored, tokens given
    // their bits, codes written; and before it, the rows of earlier tokens brought back.
    double compress_seconds = 0;
    double dequantize_seconds = 0;
};

// One conversation with a model: its cache and where it stands. Calls exclude each other; cancel() may come from any
// thread. A call that throws leaves the session as it was before, and usable.
class Session {
  public:
    // Tokens that pass the layers together, which bounds the hidden states: fewer of them far into a context, where the
    // cache takes the memory.
    static int64_t stretch_after(int64_t n_past) { return n_past < 65536 ? 32768 : 8192; }

    // n_ctx 0: what the model was trained for, or less where a GPU has memory for less. Throws ArgumentError for more
    // than that, or for an unknown policy.
    Session(const std::shared_ptr<Model> & model, int64_t n_ctx, const KvOptions & kv);
    Session(const std::shared_ptr<Model> & model, int64_t n_ctx, const std::shared_ptr<const Policy> & policy);

    // Appends n_tokens >= 1 tokens to the cache; logits() are then those after the last one.
    // Throws ContextError when they do not fit (nothing is appended), ArgumentError for bad ids, Cancelled.
    void prefill(const int32_t * tokens, size_t n_tokens, const Progress & progress = nullptr);
    void decode(int32_t token);
    // A token to each of some sessions of one model in one pass, which reads the weights once for all: each is then as
    // decode(tokens[i]) would leave it, but for how products round. They may differ in length, in n_ctx and in policy.
    // cancel() of any cancels it for all before it begins; none is changed by what is thrown. Throws also ArgumentError
    // for sessions that do not go together.
    static void decode_batch(const std::vector<Session *> & sessions, const std::vector<int32_t> & tokens);
    // Appends the tokens one by one; writes the logits after each, [n_tokens, n_vocab] f32.
    void score(const int32_t * tokens, size_t n_tokens, float * logits);
    // [n_vocab] f32. Throws ContextError when nothing was computed since the session began or was truncated.
    std::vector<float> logits() const;

    std::unique_ptr<Session> fork() const;
    // The whole of it in a file, which load() goes on from to the same bit: engine/session_file.h. Throw FileError.
    void save(const std::string & path) const;
    static std::unique_ptr<Session> load(const std::shared_ptr<Model> & model, const std::string & path);
    void truncate(int64_t n_tokens);  // keeps the oldest n_tokens; see KvCache::truncate
    int64_t least_kept() const;       // what truncate() takes besides 0
    void reset();                     // forgets all and frees the cache's memory
    void cancel() { cancel_ = true; }
    // Whether stats() are to tell what a prefill's seconds go to. A GPU is then waited for twice a layer.
    void time_cache(bool on);

    const std::shared_ptr<Model> & model() const { return model_; }
    int64_t n_ctx() const { return n_ctx_; }
    int64_t n_past() const;
    std::vector<int32_t> tokens() const;
    KvStats kv_stats() const;
    SessionStats stats() const;
    // Bytes that n_ctx tokens take at most of the memory of the device, a split model's GPU, beside the weights; a GPU
    // without them refuses.
    size_t planned_bytes() const;

  private:
    Session(std::shared_ptr<Model> model, const std::shared_ptr<const Policy> & policy, std::vector<KvStage> stages,
            int64_t n_ctx);
    friend class SessionFile;
    class Turn;
    void timed(Device & device, double & total, const std::function<void()> & work) const;
    void prefill_stretch(const int32_t * tokens, int64_t n_tokens, const std::function<void(int64_t)> & advanced);
    static void step(const std::vector<Session *> & sessions, const int32_t * tokens, const std::atomic<bool> & cancel);
    DecodeGraph & graph_of(int n_sequences);
    Parallel parallel() const;
    void check_room(size_t n_tokens, const std::string & whose = "") const;
    void keep_logits(const float * logits);

    std::shared_ptr<Model> model_;
    int64_t n_ctx_;
    KvCache cache_;
    DecodeGraph decode_graph_;
    std::unique_ptr<DecodeGraph> batch_graph_;  // of the last batch that this session was the first of
    PrefillGraphs prefill_graphs_;
    std::vector<int32_t> tokens_;
    std::vector<float> logits_;  // [n_vocab], or empty
    SessionStats stats_;
    bool times_cache_ = false;
    std::atomic<bool> cancel_{false};
    mutable std::mutex turn_;
};

}  // namespace zipcache

#pragma once
#include <cstdint>
#include <vector>

#include "kv/codec.h"
#include "model/weights.h"

namespace zipcache {

// What the cache costs, counted from what is allocated.
struct KvStats {
    size_t bytes = 0;     // everything allocated: compressed tokens, window, slack, probes
    size_t elements = 0;  // tokens that are seen, summed over layers, * 2 * n_kv_heads * head_dim
    double bits = 0;      // bytes * 8 / elements
    double ratio = 0;     // 16 / bits: how much smaller than exact f16
    int64_t n_tokens = 0;
    size_t compressed_bytes = 0;     // of compressed tokens: codes, parameters, order, transforms
    size_t compressed_elements = 0;  // seen or not: a segment goes when its last token is no longer seen
    double compressed_bits = 0;
};

// A run of tokens of one layer in a cache: a segment, and which of its tokens are still seen.
struct SegmentUse {
    std::shared_ptr<const Segment> segment;
    int64_t position = 0;  // in the context, of its first token
    int64_t first_seen = 0, last_seen = 0;
    std::shared_ptr<const Bytes> places;  // the token of each place, once some are not seen

    bool whole() const { return first_seen == 0 && last_seen == segment->n_tokens; }
};

// Where the rows of a layer's prefill stand: those of the past, then room for the new ones.
struct PrefillRows {
    ggml_tensor * k = nullptr;  // [head_dim, capacity, n_kv_heads] f16
    ggml_tensor * v = nullptr;
    int64_t n_past = 0;         // rows that are already there; all but the evicted, or the newest that a window sees
    std::vector<int64_t> past;  // [n_past] rising: how far each stands from the first new token (-1: just before it);
                                // empty: one after the other

    // The first row that a new token sees, through a sliding window or (0) without one.
    int64_t first_seen(int64_t token, int sliding_window) const;
};

// Keys and values of all layers: immutable compressed segments, then a window of the newest tokens, uncompressed. The
// policy f16 has the window alone, and it grows.
//
// What a prefill or a compression makes stands aside until commit(), so that a failed or cancelled one costs nothing.
class KvCache {
  public:
    KvCache(std::shared_ptr<const Policy> policy, const HParams & h, std::vector<KvStage> stages, int64_t n_ctx);
    KvCache(KvCache &&) = default;
    KvCache & operator=(KvCache &&) = default;

    const Policy & policy() const { return *policy_; }
    const std::shared_ptr<const Policy> & shared_policy() const { return policy_; }
    const std::vector<KvStage> & stages() const { return stages_; }
    Device & device_of(int layer) const { return *stage_of(layer).layers.device; }
    int64_t size() const { return n_tokens_; }
    int64_t window_size() const { return n_window_; }  // uncompressed tokens

    // Prefill of n_new tokens, layer by layer: begin() gives the rows to compute with, end() takes what they hold.
    // probes: indices of new tokens; probe_q [n_probes, n_heads, head_dim] f32.
    PrefillRows begin_prefill(int layer, int64_t n_new, const Parallel & parallel);
    void end_prefill(int layer, int64_t n_new, const std::vector<int64_t> & probes, const float * probe_q,
                     const Parallel & parallel);
    void commit(int64_t n_new);  // what every layer made takes its place
    void abandon();              // or is dropped

    // Decode: makes room for one token, compressing the window if it is full. Then the graph stores the token's row at
    // window_size() of each layer, and advance() counts it.
    void make_room(const Parallel & parallel);
    void advance();

    // Keeps the oldest n tokens. Tokens of a segment that is cut stay allocated, unseen. Throws ContextError below
    // least_kept(), but for 0: sliding windows have forgotten what lies before.
    void truncate(int64_t n_tokens);
    int64_t least_kept() const;
    KvCache clone() const;  // shares the segments
    void clear();           // forgets all tokens and frees their memory
    size_t scratch_bytes() const { return scratch_.memory.size(); }
    void release_scratch() {
        scratch_ = Window();
        past_ = {};
    }

    // Changes whenever memory of a window moved: graphs over the views below are then stale. No two caches that have
    // room for a token have the same.
    uint64_t version() const { return version_; }
    const LayerView & view(int layer) const { return *layers_[layer].shown; }

    KvStats stats() const;

  private:
    friend class SessionFile;
    struct Window {
        Device * device = nullptr;
        GgmlContext context;
        TensorMemory memory;
        ggml_tensor * k = nullptr;
        ggml_tensor * v = nullptr;
        int64_t capacity() const { return k ? k->ne[1] : 0; }
    };
    struct Target {       // for rows: those of a KV head lie together
        uint16_t *k, *v;  // of the first
        int64_t stride;   // rows from one head to the next
    };
    // Queries of the decode steps that are probes of the next compression.
    struct Slots {
        Bytes q;        // [n_slots, n_heads, head_dim] f16
        Bytes log_sum;  // [n_slots, n_heads] f32
    };
    struct Made {  // by a prefill, until commit()
        std::vector<SegmentUse> segments;
        bool replaces = false;  // all segments that were there before; else they come behind them
        std::shared_ptr<const Balance> balance;
        Bytes k, v;  // [n_kv_heads, n_window, head_dim] f16
        int64_t n_window = 0;
    };
    struct Layer {
        std::vector<SegmentUse> segments;
        std::vector<ggml_zipcache_segment> segment_views;
        Window window;
        Slots slots;
        std::shared_ptr<const Balance> balance;
        ggml_zipcache_layer view;
        std::unique_ptr<LayerView> shown;  // `view`, as the device reads it
        std::optional<Made> made;
    };

    const KvStage & stage_of(int layer) const;
    const SegmentCodec & codec_of(int layer) const { return *stage_of(layer).codec; }
    Window allocate(Device & device, int64_t capacity) const;
    void grow_windows(int64_t n_tokens);
    void set_window(Layer & layer, Window window) const;
    Rows window_rows(int layer) const;
    Target target(const Window & window, int64_t first = 0) const;
    void copy_rows(Device & device, const Rows & from, const Target & to) const;
    void refresh(int layer);
    void hide(int layer, SegmentUse & use, int64_t first_seen, int64_t last_seen) const;
    PrefillRows copy_past(int layer, const Window & to, const Parallel & parallel) const;
    void keep_window(int layer, Made & made, const Rows & rows, int64_t first) const;
    Made evict(int layer, int64_t n_new, const Probes & probes, const Parallel & parallel) const;
    std::vector<float> scores_of(int layer, const Rows & rows, const std::vector<int64_t> & position,
                                 const Probes & probes, const Parallel & parallel) const;
    void compress_windows(const Parallel & parallel);
    std::shared_ptr<Segment> compress_window(int layer, const Parallel & parallel);  // null where it evicts
    Probes recorded_probes(int layer, std::vector<float> & queries) const;           // which hold them
    void choose_slots();
    void make_slots(int layer);
    ProbeSlots show_slots(const Layer & layer) const;
    size_t compressed_bytes(const Layer & layer) const;

    std::shared_ptr<const Policy> policy_;
    const HParams * h_;  // of the model, which outlives its caches
    std::vector<KvStage> stages_;
    int64_t n_ctx_;
    int64_t n_tokens_ = 0;
    int64_t n_window_ = 0;
    uint64_t version_ = 0;
    std::vector<Layer> layers_;
    Window scratch_;                       // rows of the layer that a prefill is at
    PrefillRows past_;                     // of them, those that were there before
    std::vector<int64_t> slot_positions_;  // [n_slots] rising: the tokens in the context that are probes
};

// Bytes that n_tokens of f16 cache take, without slack.
size_t f16_cache_bytes(const HParams & h, int64_t n_tokens);

}  // namespace zipcache

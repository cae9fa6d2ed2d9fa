#pragma once
#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "device/handles.h"
#include "ggml-zipcache.h"

namespace zipcache {

// A tensor, and host memory of the same size that its data come from or go to: the tensor's own where the device is
// the host.
struct Transfer {
    ggml_tensor * tensor = nullptr;
    void * host = nullptr;
};

// A graph that runs for every token: `in` is sent before it, `out` fetched after it.
class Recording {
  public:
    virtual ~Recording() = default;
    // Throws Cancelled when `cancel` is true before it begins, or, on the host, becomes so on the way.
    virtual void run(const std::atomic<bool> & cancel) = 0;
};

// Where attention leaves the queries of tokens that are probes.
struct ProbeSlots {
    std::vector<int32_t> slot;  // [rows of the window], below 0: none
    uint16_t * q = nullptr;     // [n_slots, n_heads, head_dim] f16
    float * log_sum = nullptr;  // [n_slots, n_heads]: log-sum-exp of the logits
};

// The cache of one layer as the device reads it.
class LayerView {
  public:
    virtual ~LayerView() = default;
    // Takes note of a change. What `layer` points to stays the caller's. Its probe_q and probe_log_sum are not looked
    // at.
    virtual void show(const ggml_zipcache_layer & layer) = 0;
    // From now on the queries of some tokens of the window are kept: those whose slot is not below 0.
    virtual void keep_probes(const ProbeSlots & slots) = 0;
    // The next token is that of this row.
    virtual void begin_token(int64_t row) = 0;
};

// How queries and keys turn by position, without YaRN's mix.
struct Rope {
    ggml_tensor * positions;  // [n_sequences] i32
    ggml_tensor * factors;    // [n_dims / 2] f32 or null
    int n_dims;               // channels of a head that turn
    bool halves;              // channel c turns with c + n_dims / 2, else 2 c with 2 c + 1
    float base, frequency_scale, attention_factor;
};

// The caches of one layer of some sequences, as one step of attention reads them.
class BatchView {
  public:
    virtual ~BatchView() = default;
    // Whether attend() takes queries and keys as they are before RoPE.
    virtual bool turns() const { return false; }
    // The nodes that store the tokens' keys and values in the windows and let each query attend to all of its
    // sequence's layer: [head_dim * n_heads, n_sequences] f32. They serve until a window moves. rope: null where
    // queries and keys have turned.
    virtual ggml_tensor * attend(ggml_context * ctx, const ggml_zipcache_new_tokens & tokens, const Rope * rope) = 0;
    // Takes note of what the layers' views were shown. To be called before the nodes run.
    virtual void refresh() = 0;
};

struct FreeMemory {
    size_t free;  // bytes
    size_t total;
};

// Where a model's weights, caches and graphs lie and run. What is asked of it happens in the order it was asked.
// Callers take turns (graph/executor.h).
class Device {
  public:
    static constexpr int64_t kNeverWide = std::numeric_limits<int64_t>::max();

    virtual ~Device() = default;
    virtual std::string name() const = 0;         // as ModelOptions::device names it
    virtual std::string description() const = 0;  // what a person calls it
    virtual bool is_host() const = 0;             // its memory is the host's
    virtual bool is_shared() const = 0;           // the host reads and writes its memory, at the same addresses
    virtual ggml_backend_buffer_type_t memory() const = 0;
    virtual ggml_backend_buffer_type_t staging() const = 0;  // host memory that it copies from and to
    virtual FreeMemory free_memory() const = 0;
    virtual int chunk() const = 0;      // tokens that a graph of prefill works on
    virtual int key_block() const = 0;  // its flash attention is at its best over multiples of so many keys
    // Room for n_rows keys whose last block is whole: a prefill's attention looks at all of it.
    int64_t whole_blocks(int64_t n_rows) const { return (n_rows + key_block() - 1) / key_block() * key_block(); }

    virtual bool computes(const ggml_tensor * node) const = 0;
    // Whether BatchView::attend() reads heads of head_dim channels, each for so many query heads. Here: GPUs' kernels.
    virtual bool attends(int n_queries, int head_dim) const;
    // From so many tokens on wide_product() has a way of its own.
    virtual int64_t least_wide() const { return kNeverWide; }
    // weight * x, faster than ggml's, with memory for a copy of each in 16 bits; null where ggml's is to be taken.
    virtual ggml_tensor * wide_product(ggml_context *, ggml_tensor * /*weight*/, ggml_tensor * /*x*/) const {
        return nullptr;
    }
    // Returns when the results are there. Throws Cancelled as Recording::run() does.
    virtual void compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) = 0;
    // May return while it computes, but not before the graph started last has ended, whose inputs the host may then
    // change: with inputs in two places it is ready with the next graph when this one ends.
    virtual void start(ggml_cgraph * graph, const std::atomic<bool> & cancel) { compute(graph, cancel); }
    // The graph and its tensors must outlive the recording.
    virtual std::unique_ptr<Recording> record(ggml_cgraph * graph, const Transfer & in, const Transfer & out) = 0;
    // formats: those that segments shown to it may have
    virtual std::unique_ptr<LayerView> layer_view(const std::vector<const ggml_zipcache_format *> & formats) = 0;
    // layers: views of its own, of one layer of different sequences; they must outlive what is asked of it
    virtual std::unique_ptr<BatchView> batch_view(const std::vector<const LayerView *> & layers) = 0;
    // The node that fills mask [n_keys, n_queries] f16: 0 where spans [2, n_queries] i32 says [first, last), else -inf.
    virtual ggml_tensor * fill_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * spans) = 0;

    // Memory for the tensors of a context, outside any graph; null when there is none left.
    virtual ggml_backend_buffer_t allocate_tensors(ggml_context * context) {
        return ggml_backend_alloc_ctx_tensors_from_buft(context, memory());
    }
    virtual void release_tensors(ggml_backend_buffer_t buffer) { ggml_backend_buffer_free(buffer); }
    // Pieces of its memory that come and go with compressions; null when there is none left.
    virtual void * allocate(size_t n_bytes) = 0;
    virtual void release(void * memory) = 0;
    virtual void clear(void * memory, size_t n_bytes) = 0;  // zeros
    // n pieces of `width` bytes within its memory.
    virtual void copy(void * to, size_t to_stride, const void * from, size_t from_stride, size_t width, size_t n) = 0;
    virtual void read(void * host, const void * from, size_t n_bytes) = 0;
    virtual void write(void * to, const void * host, size_t n_bytes) = 0;
    // Returns when all that was asked of it is done.
    virtual void settle() = 0;
};

}  // namespace zipcache

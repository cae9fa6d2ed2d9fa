#pragma once
#include <cstdint>
#include <vector>

#include "ggml-zipcache.h"
#include "model/hparams.h"
#include "model/weights.h"

namespace zipcache {

// What the cache costs, counted from what is allocated.
struct KvStats {
    size_t bytes = 0;     // everything allocated: tokens and slack
    size_t elements = 0;  // cached tokens * layers * 2 * n_kv_heads * head_dim
    double bits = 0;      // bytes * 8 / elements
    double ratio = 0;     // 16 / bits: how much smaller than exact f16
    int64_t n_tokens = 0;
    size_t compressed_bytes = 0;  // of compressed tokens: codes, parameters, order, transforms
    size_t compressed_elements = 0;
    double compressed_bits = 0;
};

// Uncompressed keys and values of all layers, f16. Memory follows the tokens: it grows in steps, one layer at a time,
// so the peak is one layer's copy above the size.
class F16Cache {
  public:
    F16Cache(const HParams & h, int64_t n_ctx);

    int64_t size() const { return n_tokens_; }
    int64_t capacity() const { return capacity_; }
    void reserve(int64_t n_tokens);                          // may move every layer: see version()
    void resize(int64_t n_tokens) { n_tokens_ = n_tokens; }  // rows up to n_tokens were stored, or are forgotten
    F16Cache clone() const;                                  // a copy with no slack
    void clear();                                            // forgets all tokens and frees their memory

    // Changes whenever memory moved: graphs that hold the tensors below are then stale.
    uint64_t version() const { return version_; }
    ggml_tensor * k(int layer) const { return layers_[layer].k; }  // [head_dim, capacity, n_kv_heads] f16
    ggml_tensor * v(int layer) const { return layers_[layer].v; }
    const ggml_zipcache_layer * layer(int layer) const { return &views_[layer]; }

    KvStats stats() const;

  private:
    struct Layer {
        GgmlContext context;
        GgmlBuffer buffer;
        ggml_tensor * k = nullptr;
        ggml_tensor * v = nullptr;
    };
    Layer allocate(int64_t capacity) const;
    void regrow(int64_t capacity);

    const HParams * h_;  // of the model, which outlives its caches
    int64_t n_ctx_;
    int64_t n_tokens_ = 0;
    int64_t capacity_ = 0;
    uint64_t version_ = 0;
    std::vector<Layer> layers_;
    std::vector<ggml_zipcache_layer> views_;
};

// Bytes that n_tokens of f16 cache take, without slack.
size_t f16_cache_bytes(const HParams & h, int64_t n_tokens);

}  // namespace zipcache

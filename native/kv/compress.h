#pragma once
#include <memory>
#include <optional>

#include "common/pages.h"
#include "kv/balance.h"
#include "kv/output_norms.h"

namespace zipcache {

// Compressed tokens of one layer. Immutable; shared by all sessions that came from the one that made it.
struct Segment {
    std::shared_ptr<const Policy> policy;
    const ggml_zipcache_format * format = nullptr;  // one of the policy's
    int64_t n_tokens = 0;
    std::shared_ptr<const Balance> balance;  // shared with the layer's other segments, or null
    // where the host is the device
    PageVector<uint8_t> data;
    PageVector<uint8_t> correction;  // ggml/src/correction.h, or empty
    std::vector<float> k_divisor;    // [n_kv_heads, head_dim] of this segment alone, or empty
    std::vector<float> v_divisor;
    std::vector<float> score;  // [n_tokens]: the attention that each has got so far, or empty (Ranking::evict)
    // else the same in the device's memory and order
    Bytes device_data, device_divisors;  // of keys, then of values, where it has them
    ggml_zipcache_segment view = {};     // as attention reads it: whole

    const float * keys_divisor() const;  // the host's
    const float * values_divisor() const;
    size_t bytes() const;  // without the balance
};

// What stays of a run of tokens, uncompressed (Ranking::evict).
struct Kept {
    std::vector<uint8_t> tier;  // [n_tokens]: 0 stays, 1 goes
    std::vector<uint32_t> row;  // [n_tokens], of the rows at hand; whatever for those that go
    std::vector<float> score;   // [n_tokens]
};

// Of a compression's random saliency.
inline uint64_t compression_seed(int layer, int64_t n_tokens) {
    return uint64_t(layer) << 32 | uint64_t(n_tokens);
}

// How rows will be compressed: a segment that has all but its codes.
struct Compression {
    std::shared_ptr<Segment> segment;
    std::shared_ptr<Balance> learned;  // the segment's, where this is the layer's first compression
    std::vector<uint8_t> tier;         // [n_orders, n_tokens]
};

// Compresses rows of one layer.
class Compressor {
  public:
    Compressor(std::shared_ptr<const Policy> policy, const HParams & h, OutputNorms & norms)
        : policy_(std::move(policy)), h_(h), norms_(norms) {}

    // score: score_rows() or what does as it does; asked where the policy wants to know.
    Compression plan(int layer, const Rows & rows, int64_t first, int64_t n, const Probes & probes,
                     std::shared_ptr<const Balance> balance, const std::function<Scores()> & score,
                     const Parallel & parallel) const;

    // Rows [first, first + n). balance: the layer's, or null at its first compression, which then makes one.
    std::shared_ptr<Segment> compress(int layer, const Rows & rows, int64_t first, int64_t n, const Probes & probes,
                                      std::shared_ptr<const Balance> balance, const Parallel & parallel) const;
    std::shared_ptr<Segment> keep(const Rows & rows, Kept kept, const Parallel & parallel) const;

  private:
    std::shared_ptr<Segment> begin_segment(int64_t n_tokens) const;
    std::vector<uint8_t> choose_tiers(const ggml_zipcache_format & format, const Rows & rows, int64_t first, int64_t n,
                                      const Scores & scores, const Balance * balance, uint64_t seed,
                                      const Parallel & parallel) const;

    void quantize_corrected(Segment & segment, const Rows & rows, int64_t first, const uint8_t * tier,
                            const Parallel & parallel) const;
    // tier, row: as ggml_zipcache_rows has them.
    void quantize(Segment & segment, const Rows & rows, int64_t first, const uint8_t * tier, const uint32_t * row,
                  const Parallel & parallel) const;

    std::shared_ptr<const Policy> policy_;
    const HParams & h_;
    OutputNorms & norms_;
};

}  // namespace zipcache

#pragma once
#include <memory>

#include "device/memory.h"
#include "device/stage.h"
#include "kv/compress.h"

namespace zipcache {

// A segment as files hold it.
struct StoredSegment {
    std::vector<float> k_divisor;  // [n_kv_heads, head_dim] of this segment alone, or empty
    std::vector<float> v_divisor;
    std::vector<float> score;        // [n_tokens], or empty
    PageVector<uint8_t> data;        // ggml/src/format.h
    PageVector<uint8_t> correction;  // ggml/src/correction.h, or empty
};

// Turns rows into segments and back, where they lie. Immutable.
class SegmentCodec {
  public:
    virtual ~SegmentCodec() = default;

    // Rows [first, first + n) of a layer. balance: the layer's, or null at its first compression, which then makes one.
    virtual std::shared_ptr<Segment> compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                              const Probes & probes, std::shared_ptr<const Balance> balance,
                                              const Parallel & parallel) const = 0;
    // Gives back what compress() took more than these turned out to need. Best of many at once: a GPU waits once. Their
    // views change.
    virtual void fit(const std::vector<std::shared_ptr<Segment>> & /*segments*/) const {}
    // What stays of a run of tokens, where the policy evicts.
    virtual std::shared_ptr<const Segment> keep(const Rows & rows, Kept && kept, const Parallel & parallel) const;
    // The token of each place: u16, as ggml_zipcache_segment::position has them.
    virtual std::shared_ptr<const Bytes> places(const Segment & segment) const = 0;
    // Tokens [first, last) of a segment as rows, without the evicted ones, which are the same in every head.
    //   k, v  [n_kv_heads, stride, head_dim] f16, from the first row on
    // Returns the token of each row, rising.
    virtual std::vector<int64_t> dequantize(const Segment & segment, int64_t first, int64_t last, uint16_t * k,
                                            uint16_t * v, int64_t stride, const Parallel & parallel) const = 0;
    // What the segments of a layer take at most for a prompt of n_tokens.
    virtual size_t most_bytes(int64_t n_tokens) const = 0;
    // A segment as files hold it, and back. `segment` has its format, number of tokens and balance.
    virtual StoredSegment store(const Segment & segment) const = 0;
    virtual void restore(Segment & segment, StoredSegment stored) const = 0;
    // Brings a balance that came from a file to where the segments lie.
    virtual void send(Balance & balance) const = 0;
};

// Throws ArgumentError for a policy that the device does not have.
std::shared_ptr<const SegmentCodec> make_codec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h,
                                               OutputNorms & norms);

// A stage's layers and what turns their rows into segments.
struct KvStage {
    Stage layers;
    std::shared_ptr<const SegmentCodec> codec;
};

// Throws as make_codec() does.
std::vector<KvStage> make_codecs(const std::vector<Stage> & stages, const std::shared_ptr<const Policy> & policy,
                                 const HParams & h, OutputNorms & norms);

}  // namespace zipcache

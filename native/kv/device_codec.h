#pragma once
#include "ggml-zipcache-cuda.h"
#include "kv/codec.h"

namespace zipcache {

// Segments in a GPU's memory, in device order (ggml-zipcache-cuda.h): what is the same on all of them.
class DeviceCodec : public SegmentCodec {
  public:
    // Throws ArgumentError for a policy whose formats the kernels don't read.
    DeviceCodec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h);

    std::vector<int64_t> dequantize(const Segment & segment, int64_t first, int64_t last, uint16_t * k, uint16_t * v,
                                    int64_t stride, const Parallel & parallel) const override;
    size_t most_bytes(int64_t n_tokens) const override;
    StoredSegment store(const Segment & segment) const override;
    void restore(Segment & segment, StoredSegment stored) const override;
    void send(Balance & balance) const override;

  protected:
    // All tokens of a segment, with its divisors.
    virtual void rows_of(const Segment & segment, const ggml_zipcache_cuda_rows_out & out) const = 0;

    // Bytes that a segment takes at most: exactly, where the policy says how many tokens a tier gets.
    size_t bound(const ggml_zipcache_format & format, int64_t n_tokens) const;
    void set_view(Segment & segment) const;
    // The device's [n_kv_heads, head_dim], or null.
    const float * keys_divisor(const Segment & segment) const;
    const float * values_divisor(const Segment & segment) const;

    Device & memory_;
    std::shared_ptr<const Policy> policy_;
    const HParams & h_;
};

}  // namespace zipcache

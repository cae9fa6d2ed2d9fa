#pragma once
#include "kv/codec.h"

namespace zipcache {

// Segments in the host's memory.
class HostCodec : public SegmentCodec {
  public:
    HostCodec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h, OutputNorms & norms)
        : device_(device), h_(h), compressor_(std::move(policy), h, norms) {}

    std::shared_ptr<Segment> compress(int layer, const Rows & rows, int64_t first, int64_t n, const Probes & probes,
                                      std::shared_ptr<const Balance> balance, const Parallel & parallel) const override;
    std::shared_ptr<const Segment> keep(const Rows & rows, Kept && kept, const Parallel & parallel) const override;
    std::shared_ptr<const Bytes> places(const Segment & segment) const override;
    std::vector<int64_t> dequantize(const Segment & segment, int64_t first, int64_t last, uint16_t * k, uint16_t * v,
                                    int64_t stride, const Parallel & parallel) const override;
    size_t most_bytes(int64_t n_tokens) const override;
    StoredSegment store(const Segment & segment) const override;
    void restore(Segment & segment, StoredSegment stored) const override;
    void send(Balance &) const override {}

  private:
    Device & device_;
    const HParams & h_;
    Compressor compressor_;
};

}  // namespace zipcache

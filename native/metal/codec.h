#pragma once
#include "kv/device_codec.h"
#include "metal/metal_device.h"

namespace zipcache::metal {

// Segments in the memory that the GPU and the host share. A prompt's scores and all codes are made by the GPU, what is
// between them by the host.
class MetalCodec : public DeviceCodec {
  public:
    // Throws ArgumentError for a policy whose formats the kernels don't read.
    MetalCodec(MetalDevice & device, const std::shared_ptr<const Policy> & policy, const HParams & h,
               OutputNorms & norms)
        : DeviceCodec(device, policy, h), device_(device), compressor_(policy, h, norms) {}

    std::shared_ptr<Segment> compress(int layer, const Rows & rows, int64_t first, int64_t n, const Probes & probes,
                                      std::shared_ptr<const Balance> balance, const Parallel & parallel) const override;
    std::shared_ptr<const Bytes> places(const Segment & segment) const override;

  private:
    Scores score(const Rows & rows, int64_t first, int64_t n, const Probes & probes) const;
    void quantize(Segment & segment, const Rows & rows, int64_t first, const std::vector<uint8_t> & tier) const;
    void rows_of(const Segment & segment, const ggml_zipcache_cuda_rows_out & out) const override;
    // A copy that the GPU reads.
    template <class T>
    Bytes put(const std::vector<T> & values) const;

    MetalDevice & device_;
    Compressor compressor_;
};

}  // namespace zipcache::metal

#pragma once
#include <utility>

#include "cuda/balance.h"
#include "cuda/cuda_device.h"
#include "cuda/temporary.h"
#include "cuda/tiers.h"
#include "kv/device_codec.h"

namespace zipcache::cuda {

// Segments in a GPU's memory, made there: scores, balance, tiers and codes without a word from the host, but for the
// balance, which it keeps a copy of.
class CudaCodec : public DeviceCodec {
  public:
    // Throws ArgumentError for a policy whose formats the kernels don't read.
    CudaCodec(CudaDevice & device, std::shared_ptr<const Policy> policy, const HParams & h, OutputNorms & norms);

    std::shared_ptr<Segment> compress(int layer, const Rows & rows, int64_t first, int64_t n, const Probes & probes,
                                      std::shared_ptr<const Balance> balance, const Parallel & parallel) const override;
    void fit(const std::vector<std::shared_ptr<Segment>> & segments) const override;
    std::shared_ptr<const Bytes> places(const Segment & segment) const override;

  private:
    struct Scores;  // kv/saliency.h's, on the device
    KeyRows key_rows(const Rows & rows) const;
    Scores score(const Rows & rows, int64_t first, int64_t n, const Probes & probes) const;
    std::shared_ptr<const Balance> find_balance(int layer, const Rows & rows, int64_t first, int64_t n,
                                                const Probes & probes, const Scores & scores) const;
    void choose_tiers(const Segment & segment, int layer, const Rows & rows, int64_t first, const Scores & scores,
                      uint8_t * tier) const;
    void find_saliency(int layer, int64_t first, int64_t n, const Scores & scores, float * saliency) const;
    void quantize(Segment & segment, const Rows & rows, int64_t first, const uint8_t * tier) const;
    void rows_of(const Segment & segment, const ggml_zipcache_cuda_rows_out & out) const override;

    CudaDevice & device_;
    OutputNorms & norms_;
    // The same for all layers of a prompt, and some time to find. Guarded by the device's turn.
    mutable std::pair<const ggml_zipcache_format *, int64_t> sizes_for_ = {nullptr, 0};
    mutable SegmentSizes sizes_ = {};
};

}  // namespace zipcache::cuda

#pragma once
#include "cuda/balance.h"
#include "cuda/cuda_device.h"
#include "cuda/temporary.h"
#include "ggml-zipcache-cuda.h"
#include "kv/codec.h"

namespace zipcache::cuda {

// Segments in a GPU's memory, made there: scores, balance, tiers and codes without a word from the host, but for the
// balance, which it keeps a copy of.
class CudaCodec : public SegmentCodec {
  public:
    // Throws ArgumentError for a policy whose formats the kernels don't read.
    CudaCodec(CudaDevice & device, std::shared_ptr<const Policy> policy, const HParams & h, OutputNorms & norms);

    std::shared_ptr<const Segment> compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                            const Probes & probes, std::shared_ptr<const Balance> balance,
                                            const Parallel & parallel) const override;
    std::shared_ptr<const Bytes> places(const Segment & segment) const override;
    std::vector<int64_t> dequantize(const Segment & segment, int64_t first, int64_t last, uint16_t * k, uint16_t * v,
                                    int64_t stride, const Parallel & parallel) const override;
    size_t most_bytes(int64_t n_tokens) const override;
    StoredSegment store(const Segment & segment) const override;
    void restore(Segment & segment, StoredSegment stored) const override;
    void send(Balance & balance) const override;

  private:
    struct Scores;  // kv/saliency.h's, on the device
    KeyRows key_rows(const Rows & rows) const;
    Scores score(const Rows & rows, int64_t first, int64_t n, const Probes & probes) const;
    std::shared_ptr<const Balance> find_balance(int layer, const Rows & rows, int64_t first, int64_t n,
                                                const Probes & probes, const Scores & scores) const;
    void choose_tiers(const Segment & segment, int layer, const Rows & rows, int64_t first, const Scores & scores,
                      uint8_t * tier) const;
    void find_saliency(int layer, int64_t first, int64_t n, const Scores & scores, float * saliency) const;
    size_t bound(const ggml_zipcache_format & format, int64_t n_tokens) const;
    void quantize(Segment & segment, const Rows & rows, int64_t first, const uint8_t * tier) const;
    void set_view(Segment & segment) const;
    void rows_of(const Segment & segment, const ggml_zipcache_cuda_rows_out & out) const;

    CudaDevice & device_;
    std::shared_ptr<const Policy> policy_;
    const HParams & h_;
    OutputNorms & norms_;
};

}  // namespace zipcache::cuda

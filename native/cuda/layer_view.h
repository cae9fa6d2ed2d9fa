#pragma once
#include "cuda/cuda_device.h"
#include "cuda/own_node.h"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {

// A layer's cache as attend_kv reads it: a description in device memory that stays where it is, so that recorded steps
// need not be recorded again when the cache changes.
class CudaLayerView : public LayerView, public OwnNode {
  public:
    // any_format: as ggml_zipcache_cuda_attend_args has it
    CudaLayerView(CudaDevice & device, bool any_format)
        : device_(device),
          any_format_(any_format),
          sequence_(sizeof(ggml_zipcache_cuda_sequence)),
          n_segments_(sizeof(int32_t)) {}

    void show(const ggml_zipcache_layer & layer) override;
    void keep_probes(const ProbeSlots & slots) override;
    void begin_token(int64_t) override {}  // the kernel finds its slot by n_tokens
    ggml_tensor * attend(ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                         const TokenPlace & place) override;
    // Stores the token's row, then attends.
    void enqueue(const ggml_tensor * node, cudaStream_t stream) const override;

  private:
    ggml_zipcache_cuda_attend_args attend_args() const;
    void show_segments();
    void send();

    CudaDevice & device_;
    bool any_format_;
    ggml_zipcache_layer layer_ = {};
    ggml_zipcache_cuda_sequence described_ = {};
    Memory sequence_;    // described_
    Memory segments_;    // [room] ggml_zipcache_cuda_segment
    Memory n_segments_;  // i32
    Memory index_;       // written by index_kv
    Memory slots_;       // [rows of the window] i32
    void * workspace_ = nullptr;
    size_t workspace_bytes_ = 0;
};

}  // namespace zipcache::cuda

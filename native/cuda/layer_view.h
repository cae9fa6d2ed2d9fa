#pragma once
#include <optional>

#include "cuda/cuda_device.h"
#include "device/own_node.h"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {

// A layer's cache as attend_kv reads it, but for n_tokens, which the graph that attends has.
class CudaLayerView : public LayerView {
  public:
    // any_format: as ggml_zipcache_cuda_attend_args has it
    CudaLayerView(CudaDevice & device, bool any_format)
        : device_(device), any_format_(any_format), n_segments_(sizeof(int32_t)) {}

    void show(const ggml_zipcache_layer & layer) override;
    void keep_probes(const ProbeSlots & slots) override;
    void begin_token(int64_t) override {}  // the kernel finds its slot by n_tokens

    const ggml_zipcache_layer & layer() const { return layer_; }
    const ggml_zipcache_cuda_sequence & sequence() const { return sequence_; }
    bool any_format() const { return any_format_; }

  private:
    void show_segments();

    CudaDevice & device_;
    bool any_format_;
    ggml_zipcache_layer layer_ = {};
    ggml_zipcache_cuda_sequence sequence_ = {};
    Memory segments_;    // [room] ggml_zipcache_cuda_segment
    Memory n_segments_;  // i32
    Memory index_;       // written by index_kv
    Memory slots_;       // [rows of the window] i32
};

// The layer of some sequences: a table of them in device memory that stays where it is, so that recorded steps need
// not be recorded again when a cache changes.
class CudaBatchView : public BatchView, public OwnNode {
  public:
    CudaBatchView(CudaDevice & device, const std::vector<const LayerView *> & layers);

    bool turns() const override { return true; }
    ggml_tensor * attend(ggml_context * ctx, const ggml_zipcache_new_tokens & tokens, const Rope * rope) override;
    void refresh() override;
    // Turns the tokens' heads, if it is to, stores their rows, then attends.
    void enqueue(const ggml_tensor * node, void * stream) const override;

  private:
    ggml_zipcache_cuda_attend_args attend_args() const;

    CudaDevice & device_;
    std::vector<const CudaLayerView *> layers_;
    std::vector<ggml_zipcache_cuda_sequence> sequences_;  // what the table holds
    Memory table_;                                        // [n_sequences] ggml_zipcache_cuda_sequence
    const int32_t * n_tokens_ = nullptr;                  // device [n_sequences]
    std::optional<Rope> rope_;
    Memory turned_q_;  // [n_sequences, n_heads, head_dim] f32, where there is a rope
    void * workspace_ = nullptr;
    size_t workspace_bytes_ = 0;
};

}  // namespace zipcache::cuda

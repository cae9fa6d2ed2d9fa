#pragma once
#include "device/own_node.h"
#include "metal/metal_device.h"

namespace zipcache::metal {

// A layer's cache as attend_kv reads it, but for n_tokens, which the graph that attends has.
class MetalLayerView : public LayerView {
  public:
    explicit MetalLayerView(MetalDevice & device) : device_(device) {}

    void show(const ggml_zipcache_layer & layer) override;
    void keep_probes(const ProbeSlots & slots) override;
    void begin_token(int64_t) override {}  // the kernel finds its slot by n_tokens

    const ggml_zipcache_layer & layer() const { return layer_; }
    // Encodes index_kv where segments were shown since the last call: a step's layers are indexed together with it.
    ggml_zipcache_metal_sequence sequence() const;

  private:
    void index_segments() const;

    MetalDevice & device_;
    ggml_zipcache_layer layer_ = {};
    std::vector<ggml_zipcache_segment> segments_;  // layer_'s
    ProbeSlots probes_;
    Bytes slots_;  // [rows of the window] i32
    mutable bool is_stale_ = false;
    mutable Bytes table_;  // [room] ggml_zipcache_metal_segment
    mutable Bytes count_;  // i32
    mutable Bytes index_;  // written by index_kv
};

// The layer of some sequences.
class MetalBatchView : public BatchView, public OwnNode {
  public:
    MetalBatchView(MetalDevice & device, const std::vector<const LayerView *> & layers);

    ggml_tensor * attend(ggml_context * ctx, const ggml_zipcache_new_tokens & tokens, const Rope *) override;
    void refresh() override;
    // Stores the tokens' rows, then attends.
    void enqueue(const ggml_tensor * node, void * encoder) const override;

  private:
    ggml_zipcache_metal_attend_args attend_args() const;

    MetalDevice & device_;
    std::vector<const MetalLayerView *> layers_;
    Bytes table_;                               // [n_sequences] ggml_zipcache_metal_sequence
    ggml_zipcache_metal_address n_tokens_ = 0;  // [n_sequences] i32
};

}  // namespace zipcache::metal

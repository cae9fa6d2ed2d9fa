#pragma once
#include <mutex>
#include <vector>

#include "device/memory.h"
#include "metal/arena.h"

namespace zipcache::metal {

// An Apple GPU. ggml's backend and our kernels share its queue and its memory, which is the host's as well; a graph is
// handed over whole and waited for once. Outside of that the host touches the memory as it likes, for nothing is under
// way then: settle() sees to it.
class MetalDevice : public Device {
  public:
    explicit MetalDevice(std::unique_ptr<Gpu> gpu);
    ~MetalDevice() override;

    std::string name() const override { return "metal"; }
    std::string description() const override { return gpu_->description(); }
    bool is_host() const override { return false; }
    bool is_shared() const override { return true; }
    ggml_backend_buffer_type_t memory() const override { return gpu_->memory(); }
    ggml_backend_buffer_type_t staging() const override { return ggml_backend_cpu_buffer_type(); }
    FreeMemory free_memory() const override { return gpu_->free_memory(); }
    int chunk() const override { return 512; }
    int key_block() const override { return 64; }
    bool computes(const ggml_tensor * node) const override;
    void compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) override;
    std::unique_ptr<Recording> record(ggml_cgraph * graph, const Transfer & in, const Transfer & out) override;
    std::unique_ptr<LayerView> layer_view(const std::vector<const ggml_zipcache_format *> & formats) override;
    std::unique_ptr<BatchView> batch_view(const std::vector<const LayerView *> & layers) override;
    ggml_tensor * fill_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * spans) override;
    ggml_backend_buffer_t allocate_tensors(ggml_context * context) override;
    void release_tensors(ggml_backend_buffer_t buffer) override;
    void * allocate(size_t n_bytes) override;
    void release(void * memory) override;
    void clear(void * memory, size_t n_bytes) override;
    void copy(void * to, size_t to_stride, const void * from, size_t from_stride, size_t width, size_t n) override;
    void read(void * host, const void * from, size_t n_bytes) override;
    void write(void * to, const void * host, size_t n_bytes) override;
    void settle() override;

    // One thread at a time hands out work: what another encoded meanwhile would come between.
    std::unique_lock<std::recursive_mutex> turn() const { return std::unique_lock<std::recursive_mutex>(mutex_); }
    const ggml_zipcache_metal_encoder * encoder() const { return &encoder_; }
    ggml_zipcache_metal_address address(const void * at) const;
    ggml_zipcache_metal_address address(const ggml_tensor * tensor) { return gpu_->address(tensor); }
    // As the kernels read it, for as long as the device lives.
    ggml_zipcache_metal_address format(const ggml_zipcache_format & format);
    // Whatever is in it; one op after the other may use it.
    ggml_zipcache_metal_address workspace(size_t n_bytes);
    int n_groups() const { return gpu_->n_groups(); }

  private:
    friend class MetalRecording;
    void enqueue(ggml_cgraph * graph);

    std::unique_ptr<Gpu> gpu_;
    Arena arena_;
    mutable std::recursive_mutex mutex_;  // the codec holds it while it gets memory
    ggml_zipcache_metal_encoder encoder_;
    bool is_busy_ = false;
    Bytes workspace_;
    std::vector<Bytes> formats_;
};

// Throws ModelError for what one of our ops has to complain about.
void check(const char * error, const char * op);

}  // namespace zipcache::metal

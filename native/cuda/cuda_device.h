#pragma once
#include <cuda_runtime_api.h>

#include <mutex>
#include <vector>

#include "cuda/paged_memory.h"
#include "device/device.h"

namespace zipcache::cuda {

// Device memory. Freed when no work uses it: freeing waits.
class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t n_bytes);  // throws ContextError
    Memory(Memory && other) noexcept;
    Memory & operator=(Memory && other) noexcept;
    ~Memory();

    void * data() const { return data_; }
    size_t size() const { return size_; }
    template <class T>
    T * as() const {
        return static_cast<T *>(data_);
    }

  private:
    void * data_ = nullptr;
    size_t size_ = 0;
};

// A GPU. ggml's backend runs what ggml has nodes for, on its own stream; our kernels and copies run on a stream of
// ours. Each waits for the other where one follows the other, by events: that needs no private type of ggml's CUDA
// backend, and in a recorded graph it costs nothing.
class CudaDevice : public Device {
  public:
    explicit CudaDevice(int index);
    ~CudaDevice() override;

    std::string name() const override { return "cuda:" + std::to_string(index_); }
    std::string description() const override;
    bool is_host() const override { return false; }
    bool is_shared() const override { return false; }
    ggml_backend_buffer_type_t memory() const override;
    ggml_backend_buffer_type_t staging() const override;
    FreeMemory free_memory() const override;
    int chunk() const override { return 2048; }
    int key_block() const override { return 256; }
    bool computes(const ggml_tensor * node) const override;
    int64_t least_wide() const override { return least_wide_; }
    ggml_tensor * wide_product(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) const override;
    void compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) override;
    void start(ggml_cgraph * graph, const std::atomic<bool> & cancel) override;
    std::unique_ptr<Recording> record(ggml_cgraph * graph, const Transfer & in, const Transfer & out) override;
    std::unique_ptr<LayerView> layer_view(const std::vector<const ggml_zipcache_format *> & formats) override;
    std::unique_ptr<BatchView> batch_view(const std::vector<const LayerView *> & layers) override;
    ggml_tensor * fill_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * spans) override;
    void * allocate(size_t n_bytes) override;
    void release(void * memory) override;
    void clear(void * memory, size_t n_bytes) override;
    void copy(void * to, size_t to_stride, const void * from, size_t from_stride, size_t width, size_t n) override;
    void read(void * host, const void * from, size_t n_bytes) override;
    void write(void * to, const void * host, size_t n_bytes) override;
    void settle() override;

    // One thread at a time enqueues: what another sent meanwhile would become part of a graph that is being recorded.
    std::unique_lock<std::recursive_mutex> turn() const;
    cudaStream_t stream() const { return stream_; }
    // Zeros that one op after the other may use and leaves zeros. Graphs remember where it is: it never moves, a larger
    // one comes beside it.
    void * workspace(size_t n_bytes);
    // A copy in its memory, for as long as it lives.
    const ggml_zipcache_format * on_device(const ggml_zipcache_format & format);

  private:
    friend class CudaRecording;
    struct EventDeleter {
        void operator()(ggml_backend_event_t event) const { ggml_backend_event_free(event); }
    };
    using Event = std::unique_ptr<ggml_backend_event, EventDeleter>;
    void enqueue(ggml_cgraph * graph);
    void run_ggml(ggml_cgraph * graph, int first, int last);
    void ggml_waits_for_us();
    void we_wait_for_ggml();

    int index_;
    mutable std::recursive_mutex mutex_;  // the codec holds it while it gets memory
    GgmlBackend backend_;
    cudaStream_t stream_ = nullptr;
    std::unique_ptr<PagedMemory> pieces_;
    Event ours_, theirs_;
    Event started_, started_before_;  // graphs: the last, and the one before
    int64_t least_wide_;
    std::vector<Memory> workspaces_;
    std::vector<std::pair<ggml_zipcache_format, Memory>> formats_;
};

}  // namespace zipcache::cuda

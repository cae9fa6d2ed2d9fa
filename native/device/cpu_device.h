#pragma once
#include <functional>
#include <memory>

#include "device/device.h"
#include "ggml-cpu.h"

namespace zipcache {

// The host: a pool of threads.
class CpuDevice : public Device {
  public:
    explicit CpuDevice(int n_threads);

    std::string name() const override { return "cpu"; }
    std::string description() const override { return "the host's processor"; }
    bool is_host() const override { return true; }
    bool is_shared() const override { return true; }
    ggml_backend_buffer_type_t memory() const override { return ggml_backend_cpu_buffer_type(); }
    ggml_backend_buffer_type_t staging() const override { return ggml_backend_cpu_buffer_type(); }
    FreeMemory free_memory() const override;
    static constexpr int kChunk = 512;
    int chunk() const override { return kChunk; }
    int key_block() const override { return 1; }
    bool computes(const ggml_tensor * node) const override;
    bool attends(int, int) const override { return true; }
    void compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) override;
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
    void settle() override {}

    int n_threads() const { return n_threads_; }
    // Runs task(i) for i in [0, n) on the threads. What a task throws is thrown again, once all have ended.
    void parallel(int n, const std::function<void(int)> & task);

  private:
    struct PoolDeleter {
        void operator()(ggml_threadpool_t pool) const { ggml_threadpool_free(pool); }
    };
    int n_threads_;
    std::unique_ptr<ggml_threadpool, PoolDeleter> pool_;
    GgmlBackend backend_;
};

}  // namespace zipcache

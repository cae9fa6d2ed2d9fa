#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device/cpu_device.h"
#include "device/stage.h"

namespace zipcache {

// The threads to compute with: as many as wanted, or one a core for 0. Throws ArgumentError.
int thread_count(int wanted);

// Where a model runs, and the host's threads beside it. Both live as long as the model. Sessions of a model take turns.
class Executor {
  public:
    // device null: the host computes; else the device, but for the first n_host_layers
    explicit Executor(int n_threads, std::unique_ptr<Device> device = nullptr, int n_host_layers = 0);

    int n_threads() const { return host_.n_threads(); }
    // That of the last layer and the output.
    Device & device() const { return *device_; }
    // Of a model with so many layers, in their order.
    std::vector<Stage> stages(int n_layers);
    // Throws Cancelled when `cancel` becomes true on the way.
    void compute(Device & device, ggml_cgraph * graph, const std::atomic<bool> & cancel);
    void start(Device & device, ggml_cgraph * graph, const std::atomic<bool> & cancel);  // Device::start()
    void run(Recording & recording, const std::atomic<bool> & cancel);
    // Runs task(i) for i in [0, n) on the host's threads. What a task throws is thrown again, once all have ended.
    void parallel(int n, const std::function<void(int)> & task);

  private:
    std::mutex turn_;
    CpuDevice host_;
    std::unique_ptr<Device> other_;
    Device * device_;
    int n_host_layers_;
};

// Memory of one kind of graph: its nodes and their activations, reused by the next graph of that kind.
class GraphMemory {
  public:
    GraphMemory(Device & device, size_t max_nodes);

    // Forgets the previous graph and starts an empty one.
    ggml_context * begin();
    ggml_cgraph * graph() const { return graph_; }
    // Gives every node without data a place. Throws ContextError when memory runs out.
    void allocate();
    size_t bytes() const;

  private:
    struct AllocatorDeleter {
        void operator()(ggml_gallocr_t allocator) const { ggml_gallocr_free(allocator); }
    };
    size_t max_nodes_;
    GgmlContext context_;
    std::unique_ptr<ggml_gallocr, AllocatorDeleter> allocator_;
    ggml_cgraph * graph_ = nullptr;
};

}  // namespace zipcache

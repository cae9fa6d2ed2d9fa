#include "graph/executor.h"

#include <algorithm>
#include <thread>

#include "common/error.h"

namespace zipcache {

int thread_count(int wanted) {
    constexpr int kMost = 512;  // ggml's own limit
    if (wanted < 0 || wanted > kMost) {
        throw ArgumentError("threads is " + std::to_string(wanted) + "; accepted: 1 to " + std::to_string(kMost) +
                            ", or 0 to choose");
    }
    return wanted > 0 ? wanted : std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMost);
}

Executor::Executor(int n_threads, std::unique_ptr<Device> device, int n_host_layers)
    : host_(n_threads),
      other_(std::move(device)),
      device_(other_ ? other_.get() : &host_),
      n_host_layers_(other_ ? n_host_layers : 0) {}

std::vector<Stage> Executor::stages(int n_layers) {
    if (n_host_layers_ == 0) {
        return {{device_, 0, n_layers}};
    }
    return {{&host_, 0, n_host_layers_}, {device_, n_host_layers_, n_layers}};
}

void Executor::compute(Device & device, ggml_cgraph * graph, const std::atomic<bool> & cancel) {
    const std::lock_guard<std::mutex> lock(turn_);
    device.compute(graph, cancel);
}

void Executor::start(Device & device, ggml_cgraph * graph, const std::atomic<bool> & cancel) {
    const std::lock_guard<std::mutex> lock(turn_);
    device.start(graph, cancel);
}

void Executor::run(Recording & recording, const std::atomic<bool> & cancel) {
    const std::lock_guard<std::mutex> lock(turn_);
    recording.run(cancel);
}

void Executor::parallel(int n, const std::function<void(int)> & task) {
    const std::lock_guard<std::mutex> lock(turn_);
    host_.parallel(n, task);
}

GraphMemory::GraphMemory(Device & device, size_t max_nodes)
    : max_nodes_(max_nodes),
      context_(ggml_init(
          {2 * max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false), nullptr, true})),
      allocator_(ggml_gallocr_new(device.memory())) {}

ggml_context * GraphMemory::begin() {
    ggml_reset(context_.get());
    graph_ = ggml_new_graph_custom(context_.get(), max_nodes_, false);
    return context_.get();
}

void GraphMemory::allocate() {
    if (!ggml_gallocr_alloc_graph(allocator_.get(), graph_)) {
        throw ContextError("not enough memory for the activations of the graph");
    }
}

size_t GraphMemory::bytes() const {
    return ggml_gallocr_get_buffer_size(allocator_.get(), 0);
}

}  // namespace zipcache

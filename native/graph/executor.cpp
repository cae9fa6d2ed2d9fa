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

Executor::Executor(int n_threads) : n_threads_(n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    pool_.reset(ggml_threadpool_new(&params));
    backend_.reset(ggml_backend_cpu_init());
    if (!pool_ || !backend_) {
        throw ModelError("ggml's CPU backend could not be started with " + std::to_string(n_threads) + " threads");
    }
    ggml_backend_cpu_set_n_threads(backend_.get(), n_threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());
}

void Executor::compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) {
    const std::lock_guard<std::mutex> lock(turn_);
    auto cancelled = [](void * flag) { return static_cast<const std::atomic<bool> *>(flag)->load(); };
    ggml_backend_cpu_set_abort_callback(backend_.get(), cancelled, const_cast<std::atomic<bool> *>(&cancel));
    const ggml_status status = ggml_backend_graph_compute(backend_.get(), graph);
    if (status == GGML_STATUS_ABORTED) {
        throw Cancelled("the computation was cancelled");
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw ContextError(std::string("ggml could not compute the graph: ") + ggml_status_to_string(status));
    }
}

namespace {

struct Tasks {
    int n;
    const std::function<void(int)> & run;
    std::atomic<int> next{0};
    std::mutex mutex;
    std::exception_ptr error;
};

void work(ggml_tensor *, int, int, void * userdata) {
    auto & tasks = *static_cast<Tasks *>(userdata);
    for (int i; (i = tasks.next++) < tasks.n;) {
        try {
            tasks.run(i);
        } catch (...) {  // must not pass through ggml
            const std::lock_guard<std::mutex> lock(tasks.mutex);
            tasks.error = std::current_exception();
        }
    }
}

}  // namespace

void Executor::parallel(int n, const std::function<void(int)> & run) {
    Tasks tasks = {n, run, {}, {}, {}};
    const std::unique_ptr<ggml_context, void (*)(ggml_context *)> context(
        ggml_init({2 * ggml_tensor_overhead() + ggml_graph_overhead_custom(4, false) + 256, nullptr, false}),
        ggml_free);
    ggml_tensor * node =
        ggml_custom_4d(context.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, work, GGML_N_TASKS_MAX, &tasks);
    ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 4, false);
    ggml_build_forward_expand(graph, node);
    compute(graph, std::atomic<bool>{false});
    if (tasks.error) {
        std::rethrow_exception(tasks.error);
    }
}

GraphMemory::GraphMemory(size_t max_nodes)
    : max_nodes_(max_nodes),
      context_(ggml_init({2 * max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false),
                          nullptr, true}),
               ggml_free),
      allocator_(ggml_gallocr_new(ggml_backend_cpu_buffer_type())) {}

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

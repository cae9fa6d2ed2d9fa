#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "ggml-backend.h"
#include "ggml-cpu.h"

namespace zipcache {

// The threads to compute with: as many as wanted, or one a core for 0. Throws ArgumentError.
int thread_count(int wanted);

// Runs graphs on the CPU with a pool of threads that lives as long as the model. Sessions of a model take turns.
class Executor {
  public:
    explicit Executor(int n_threads);

    int n_threads() const { return n_threads_; }
    // Throws Cancelled when `cancel` becomes true on the way.
    void compute(ggml_cgraph * graph, const std::atomic<bool> & cancel);
    // Runs task(i) for i in [0, n) on the threads. What a task throws is thrown again, once all have ended.
    void parallel(int n, const std::function<void(int)> & task);

  private:
    struct BackendDeleter {
        void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
    };
    struct PoolDeleter {
        void operator()(ggml_threadpool_t pool) const { ggml_threadpool_free(pool); }
    };
    int n_threads_;
    std::mutex turn_;
    std::unique_ptr<ggml_threadpool, PoolDeleter> pool_;
    std::unique_ptr<ggml_backend, BackendDeleter> backend_;
};

// Memory of one kind of graph: its nodes and their activations, reused by the next graph of that kind.
class GraphMemory {
  public:
    explicit GraphMemory(size_t max_nodes);

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
    std::unique_ptr<ggml_context, void (*)(ggml_context *)> context_;
    std::unique_ptr<ggml_gallocr, AllocatorDeleter> allocator_;
    ggml_cgraph * graph_ = nullptr;
};

}  // namespace zipcache

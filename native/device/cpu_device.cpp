#include "device/cpu_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>

#include "common/error.h"

namespace zipcache {
namespace {

constexpr size_t kAlign = 64;  // bytes: a cache line, and the widest vector

class CpuRecording : public Recording {
  public:
    CpuRecording(CpuDevice & device, ggml_cgraph * graph) : device_(device), graph_(graph) {}
    void run(const std::atomic<bool> & cancel) override { device_.compute(graph_, cancel); }

  private:
    CpuDevice & device_;
    ggml_cgraph * graph_;
};

class CpuLayerView : public LayerView {
  public:
    void show(const ggml_zipcache_layer & layer) override { layer_ = layer; }
    void keep_probes(const ProbeSlots & slots) override { slots_ = slots; }
    void begin_token(int64_t row) override {
        const int32_t slot = row < static_cast<int64_t>(slots_.slot.size()) ? slots_.slot[row] : -1;
        layer_.probe_q = slot < 0 ? nullptr : slots_.q + int64_t(slot) * layer_.n_heads * layer_.head_dim;
        layer_.probe_log_sum = slot < 0 ? nullptr : slots_.log_sum + int64_t(slot) * layer_.n_heads;
    }
    const ggml_zipcache_layer & layer() const { return layer_; }

  private:
    ggml_zipcache_layer layer_ = {};
    ProbeSlots slots_;
};

class CpuBatchView : public BatchView {
  public:
    CpuBatchView(const std::vector<const LayerView *> & layers, int n_splits) : n_splits_(n_splits) {
        for (const LayerView * view : layers) {
            layers_.push_back(&static_cast<const CpuLayerView *>(view)->layer());
        }
    }
    ggml_tensor * attend(ggml_context * ctx, const ggml_zipcache_new_tokens & tokens, const Rope *) override {
        return ggml_zipcache_attend_kv_node(ctx, layers_.data(), &tokens, n_splits_);
    }
    void refresh() override {}  // the nodes look at the layers themselves

  private:
    std::vector<const ggml_zipcache_layer *> layers_;
    int n_splits_;
};

void mask_rows(ggml_tensor * mask, int ith, int nth, void *) {
    const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
    const auto * spans = static_cast<const int32_t *>(mask->src[1]->data);
    for (int64_t i = ith; i < mask->ne[1]; i += nth) {
        auto * row = reinterpret_cast<ggml_fp16_t *>(static_cast<char *>(mask->data) + i * mask->nb[1]);
        std::fill(row, row + mask->ne[0], hidden);
        std::fill(row + spans[2 * i], row + spans[2 * i + 1], ggml_fp16_t(0));
    }
}

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

CpuDevice::CpuDevice(int n_threads) : n_threads_(n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    pool_.reset(ggml_threadpool_new(&params));
    backend_.reset(ggml_backend_cpu_init());
    if (!pool_ || !backend_) {
        throw ModelError("ggml's CPU backend could not be started with " + std::to_string(n_threads) + " threads");
    }
    ggml_backend_cpu_set_n_threads(backend_.get(), n_threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), pool_.get());
}

FreeMemory CpuDevice::free_memory() const {
    FreeMemory memory = {};
    ggml_backend_dev_memory(ggml_backend_get_device(backend_.get()), &memory.free, &memory.total);
    return memory;
}

bool CpuDevice::computes(const ggml_tensor * node) const {
    return ggml_backend_supports_op(backend_.get(), node);
}

void CpuDevice::compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) {
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

std::unique_ptr<Recording> CpuDevice::record(ggml_cgraph * graph, const Transfer &, const Transfer &) {
    return std::make_unique<CpuRecording>(*this, graph);
}

std::unique_ptr<LayerView> CpuDevice::layer_view(const std::vector<const ggml_zipcache_format *> &) {
    return std::make_unique<CpuLayerView>();
}

std::unique_ptr<BatchView> CpuDevice::batch_view(const std::vector<const LayerView *> & layers) {
    return std::make_unique<CpuBatchView>(layers, n_threads_);
}

ggml_tensor * CpuDevice::fill_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * spans) {
    return ggml_custom_inplace(ctx, mask, &spans, 1, mask_rows, GGML_N_TASKS_MAX, nullptr);
}

void * CpuDevice::allocate(size_t n_bytes) {
    return ::operator new(n_bytes, std::align_val_t(kAlign), std::nothrow);
}

void CpuDevice::release(void * memory) {
    ::operator delete(memory, std::align_val_t(kAlign));
}

void CpuDevice::clear(void * memory, size_t n_bytes) {
    std::memset(memory, 0, n_bytes);
}

void CpuDevice::copy(void * to, size_t to_stride, const void * from, size_t from_stride, size_t width, size_t n) {
    for (size_t i = 0; i < n; ++i) {
        std::memcpy(static_cast<char *>(to) + i * to_stride, static_cast<const char *>(from) + i * from_stride, width);
    }
}

void CpuDevice::read(void * host, const void * from, size_t n_bytes) {
    std::memcpy(host, from, n_bytes);
}

void CpuDevice::write(void * to, const void * host, size_t n_bytes) {
    std::memcpy(to, host, n_bytes);
}

void CpuDevice::parallel(int n, const std::function<void(int)> & run) {
    Tasks tasks = {n, run, {}, {}, {}};
    const GgmlContext context(
        ggml_init({2 * ggml_tensor_overhead() + ggml_graph_overhead_custom(4, false) + 256, nullptr, false}));
    ggml_tensor * node =
        ggml_custom_4d(context.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, work, GGML_N_TASKS_MAX, &tasks);
    ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 4, false);
    ggml_build_forward_expand(graph, node);
    compute(graph, std::atomic<bool>{false});
    if (tasks.error) {
        std::rethrow_exception(tasks.error);
    }
}

}  // namespace zipcache

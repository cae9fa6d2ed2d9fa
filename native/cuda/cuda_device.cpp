#include "cuda/cuda_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/error.h"
#include "cuda/add_norm.h"
#include "cuda/check.h"
#include "cuda/fill_mask.h"
#include "cuda/layer_view.h"
#include "cuda/wide_product.h"
#include "device/own_node.h"
#include "ggml-backend-impl.h"
#include "ggml-cuda.h"
#include "ggml-impl.h"

namespace zipcache::cuda {
namespace {

constexpr size_t kMostIdle = size_t(64) << 20;  // bytes, for the next compression

cudaEvent_t native(ggml_backend_event_t event) {
    return static_cast<cudaEvent_t>(event->context);
}

void throw_if(const std::atomic<bool> & cancel) {
    if (cancel) {
        throw Cancelled("the computation was cancelled");
    }
}

class FillMask : public OwnNode {
  public:
    void enqueue(const ggml_tensor * node, void * stream) const override {
        cuda::fill_mask(node->data, static_cast<const int32_t *>(node->src[1]->data), node->ne[0], node->ne[1],
                        static_cast<cudaStream_t>(stream));
    }
};

const FillMask kFillMask;

}  // namespace

Memory::Memory(size_t n_bytes) : size_(n_bytes) {
    if (cudaMalloc(&data_, n_bytes) != cudaSuccess) {
        (void) cudaGetLastError();
        throw ContextError("the GPU has not the memory for " + std::to_string(n_bytes) + " more bytes");
    }
}

Memory::Memory(Memory && other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Memory & Memory::operator=(Memory && other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

Memory::~Memory() {
    (void) cudaFree(data_);
}

// A graph that runs again and again. Its first run lets ggml set up what it needs; then it is recorded.
class CudaRecording : public Recording {
  public:
    CudaRecording(CudaDevice & device, ggml_cgraph * graph, const Transfer & in, const Transfer & out)
        : device_(device), graph_(graph), in_(in), out_(out) {}

    ~CudaRecording() override {
        if (recorded_) {
            (void) cudaGraphExecDestroy(recorded_);
        }
    }

    CudaRecording(const CudaRecording &) = delete;
    CudaRecording & operator=(const CudaRecording &) = delete;

    void run(const std::atomic<bool> & cancel) override {
        const auto lock = device_.turn();
        throw_if(cancel);
        if (recorded_) {
            check(cudaGraphLaunch(recorded_, device_.stream()), "replay a step");
            device_.settle();
        } else {
            enqueue();
            device_.settle();
            record();
        }
    }

  private:
    void enqueue() {
        check(cudaMemcpyAsync(in_.tensor->data, in_.host, ggml_nbytes(in_.tensor), cudaMemcpyHostToDevice,
                              device_.stream()),
              "send a step's inputs");
        device_.enqueue(graph_);
        check(cudaMemcpyAsync(out_.host, out_.tensor->data, ggml_nbytes(out_.tensor), cudaMemcpyDeviceToHost,
                              device_.stream()),
              "fetch a step's results");
    }

    void record() {
        check(cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeRelaxed), "record a step");
        cudaGraph_t graph = nullptr;
        try {
            enqueue();
        } catch (...) {
            (void) cudaStreamEndCapture(device_.stream(), &graph);
            throw;
        }
        check(cudaStreamEndCapture(device_.stream(), &graph), "record a step");
        const cudaError_t error = cudaGraphInstantiate(&recorded_, graph, 0);
        (void) cudaGraphDestroy(graph);
        check(error, "prepare a recorded step");
        check(cudaGraphUpload(recorded_, device_.stream()), "prepare a recorded step");
    }

    CudaDevice & device_;
    ggml_cgraph * graph_;
    Transfer in_, out_;
    cudaGraphExec_t recorded_ = nullptr;
};

CudaDevice::CudaDevice(int index) : index_(index), backend_(ggml_backend_cuda_init(index)) {
    if (!backend_) {
        throw ModelError("ggml could not start " + name());
    }
    check(cudaSetDevice(index), "choose the device");
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "make a stream");
    pieces_ = std::make_unique<PagedMemory>(index);
    for (Event * event : {&ours_, &theirs_, &started_, &started_before_}) {
        event->reset(ggml_backend_event_new(ggml_backend_get_device(backend_.get())));
    }
    least_wide_ = has_wide_product(index) ? kLeastWide : kNeverWide;
}

CudaDevice::~CudaDevice() {
    (void) cudaSetDevice(index_);
    (void) cudaStreamSynchronize(stream_);
    (void) cudaStreamDestroy(stream_);
}

std::unique_lock<std::recursive_mutex> CudaDevice::turn() const {
    std::unique_lock<std::recursive_mutex> lock(mutex_);
    check(cudaSetDevice(index_), "choose the device");  // the current device is the thread's
    return lock;
}

std::string CudaDevice::description() const {
    return ggml_backend_dev_description(ggml_backend_get_device(backend_.get()));
}

ggml_backend_buffer_type_t CudaDevice::memory() const {
    return ggml_backend_get_default_buffer_type(backend_.get());
}

ggml_backend_buffer_type_t CudaDevice::staging() const {
    return ggml_backend_dev_host_buffer_type(ggml_backend_get_device(backend_.get()));
}

FreeMemory CudaDevice::free_memory() const {
    FreeMemory memory = {};
    ggml_backend_dev_memory(ggml_backend_get_device(backend_.get()), &memory.free, &memory.total);
    return memory;
}

bool CudaDevice::computes(const ggml_tensor * node) const {
    return is_own(node) || ggml_backend_supports_op(backend_.get(), node);
}

void CudaDevice::ggml_waits_for_us() {
    check(cudaEventRecord(native(ours_.get()), stream_), "mark where it is");
    ggml_backend_event_wait(backend_.get(), ours_.get());
}

void CudaDevice::we_wait_for_ggml() {
    ggml_backend_event_record(theirs_.get(), backend_.get());
    check(cudaStreamWaitEvent(stream_, native(theirs_.get()), 0), "wait for ggml");
}

// A view of the graph, not a graph of its own: ggml fuses nodes by how often the whole graph uses them.
void CudaDevice::run_ggml(ggml_cgraph * graph, int first, int last) {
    ggml_cgraph stretch = ggml_graph_view(graph, first, last);
    const ggml_status status = ggml_backend_graph_compute_async(backend_.get(), &stretch);
    if (status != GGML_STATUS_SUCCESS) {
        throw ContextError(std::string("ggml could not compute the graph: ") + ggml_status_to_string(status));
    }
}

void CudaDevice::enqueue(ggml_cgraph * graph) {
    auto stock = [&](int first, int last) {
        if (first < last) {
            ggml_waits_for_us();
            run_ggml(graph, first, last);
            we_wait_for_ggml();
        }
    };
    enqueue_nodes(graph, stream_, [&](int first, int last) {
        AddNorm args = {};
        for (int i = first; i + kAddNormNodes <= last;) {
            if (!is_add_norm(graph, i, args)) {
                ++i;
                continue;
            }
            stock(first, i);
            add_norm(args, stream_);
            first = i += kAddNormNodes;
        }
        stock(first, last);
    });
    check(cudaGetLastError(), "start a kernel");
}

// The lock: a stream that another thread is recording must not be waited for.
void CudaDevice::settle() {
    const auto lock = turn();
    check(cudaStreamSynchronize(stream_), "finish its work");
}

void CudaDevice::compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) {
    const auto lock = turn();
    throw_if(cancel);
    enqueue(graph);
    settle();
}

void CudaDevice::start(ggml_cgraph * graph, const std::atomic<bool> & cancel) {
    const auto lock = turn();
    throw_if(cancel);
    enqueue(graph);
    std::swap(started_, started_before_);
    check(cudaEventRecord(native(started_.get()), stream_), "mark the end of a graph");
    check(cudaEventSynchronize(native(started_before_.get())), "finish a graph");
}

ggml_tensor * CudaDevice::wide_product(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) const {
    return x->ne[1] >= least_wide_ ? cuda::wide_product(ctx, weight, x) : nullptr;
}

std::unique_ptr<Recording> CudaDevice::record(ggml_cgraph * graph, const Transfer & in, const Transfer & out) {
    return std::make_unique<CudaRecording>(*this, graph, in, out);
}

std::unique_ptr<LayerView> CudaDevice::layer_view(const std::vector<const ggml_zipcache_format *> & formats) {
    const bool common = std::all_of(formats.begin(), formats.end(), ggml_zipcache_cuda_is_common);
    return std::make_unique<CudaLayerView>(*this, !common);
}

std::unique_ptr<BatchView> CudaDevice::batch_view(const std::vector<const LayerView *> & layers) {
    return std::make_unique<CudaBatchView>(*this, layers);
}

ggml_tensor * CudaDevice::fill_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * spans) {
    return own_node_inplace(ctx, kFillMask, mask, spans);
}

// Nothing waits, as it would for cudaMalloc and cudaFree, but for what gives much memory back.
void * CudaDevice::allocate(size_t n_bytes) {
    const auto lock = turn();
    return pieces_->allocate(n_bytes);
}

void CudaDevice::release(void * memory) {
    const std::lock_guard<std::recursive_mutex> lock(mutex_);
    (void) cudaSetDevice(index_);
    pieces_->release(memory);
    if (pieces_->idle_bytes() > kMostIdle) {
        (void) cudaStreamSynchronize(stream_);
        pieces_->trim();
    }
}

void CudaDevice::clear(void * memory, size_t n_bytes) {
    const auto lock = turn();
    check(cudaMemsetAsync(memory, 0, n_bytes, stream_), "clear its memory");
}

void CudaDevice::copy(void * to, size_t to_stride, const void * from, size_t from_stride, size_t width, size_t n) {
    const auto lock = turn();
    check(cudaMemcpy2DAsync(to, to_stride, from, from_stride, width, n, cudaMemcpyDeviceToDevice, stream_),
          "copy within its memory");
}

void CudaDevice::read(void * host, const void * from, size_t n_bytes) {
    const auto lock = turn();
    check(cudaMemcpyAsync(host, from, n_bytes, cudaMemcpyDeviceToHost, stream_), "read its memory");
    settle();
}

void CudaDevice::write(void * to, const void * host, size_t n_bytes) {
    const auto lock = turn();
    check(cudaMemcpyAsync(to, host, n_bytes, cudaMemcpyHostToDevice, stream_), "write its memory");
    // memory that is not pinned was read when that returns; what is pinned is written anew after a graph has ended
}

const ggml_zipcache_format * CudaDevice::on_device(const ggml_zipcache_format & format) {
    const auto lock = turn();
    for (const auto & [known, memory] : formats_) {
        if (std::memcmp(&known, &format, sizeof format) == 0) {
            return memory.as<const ggml_zipcache_format>();
        }
    }
    formats_.emplace_back(format, Memory(sizeof format));
    const Memory & memory = formats_.back().second;
    check(cudaMemcpyAsync(memory.data(), &format, sizeof format, cudaMemcpyHostToDevice, stream_), "send a format");
    settle();
    return memory.as<const ggml_zipcache_format>();
}

void * CudaDevice::workspace(size_t n_bytes) {
    const auto lock = turn();
    if (workspaces_.empty() || workspaces_.back().size() < n_bytes) {
        workspaces_.emplace_back(n_bytes);
        check(cudaMemsetAsync(workspaces_.back().data(), 0, n_bytes, stream_), "clear its memory");
    }
    return workspaces_.back().data();
}

}  // namespace zipcache::cuda

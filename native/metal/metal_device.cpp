#include "metal/metal_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/error.h"
#include "device/own_node.h"
#include "ggml-alloc.h"
#include "metal/layer_view.h"

namespace zipcache::metal {
namespace {

void throw_if(const std::atomic<bool> & cancel) {
    if (cancel) {
        throw Cancelled("the computation was cancelled");
    }
}

// Filled while the graph is handed over: spans are there since before it began, and what reads the mask comes later.
class FillMask : public OwnNode {
  public:
    void enqueue(const ggml_tensor * mask, void *) const override {
        const ggml_fp16_t hidden = ggml_fp32_to_fp16(-INFINITY);
        const auto * spans = static_cast<const int32_t *>(mask->src[1]->data);
        auto * row = static_cast<ggml_fp16_t *>(mask->data);
        for (int64_t i = 0; i < mask->ne[1]; ++i, row += mask->ne[0]) {
            std::fill(row, row + mask->ne[0], hidden);
            std::fill(row + spans[2 * i], row + spans[2 * i + 1], ggml_fp16_t(0));
        }
    }
};

const FillMask kFillMask;

}  // namespace

// Metal replays nothing: every step is encoded anew.
class MetalRecording : public Recording {
  public:
    MetalRecording(MetalDevice & device, ggml_cgraph * graph, const Transfer & in, const Transfer & out)
        : device_(device), graph_(graph), in_(in), out_(out) {}

    void run(const std::atomic<bool> & cancel) override {
        const auto lock = device_.turn();
        throw_if(cancel);
        std::memcpy(in_.tensor->data, in_.host, ggml_nbytes(in_.tensor));
        device_.enqueue(graph_);
        device_.settle();
        std::memcpy(out_.host, out_.tensor->data, ggml_nbytes(out_.tensor));
    }

  private:
    MetalDevice & device_;
    ggml_cgraph * graph_;
    Transfer in_, out_;
};

MetalDevice::MetalDevice(std::unique_ptr<Gpu> gpu)
    : gpu_(std::move(gpu)),
      arena_(*gpu_),
      encoder_({[](void * self, const ggml_zipcache_metal_dispatch * dispatch) {
                    auto & device = *static_cast<MetalDevice *>(self);
                    device.is_busy_ = true;
                    device.gpu_->encode(*dispatch);
                },
                this}) {}

MetalDevice::~MetalDevice() {
    formats_.clear();  // they and the workspace are pieces of the arena
    workspace_ = Bytes();
}

bool MetalDevice::computes(const ggml_tensor * node) const {
    return is_own(node) || gpu_->computes(node);
}

void MetalDevice::enqueue(ggml_cgraph * graph) {
    enqueue_nodes(graph, &encoder_, [&](int first, int last) {
        is_busy_ = true;
        gpu_->run(graph, first, last);
    });
}

void MetalDevice::settle() {
    const auto lock = turn();
    if (is_busy_) {
        is_busy_ = false;
        gpu_->wait();
    }
}

void MetalDevice::compute(ggml_cgraph * graph, const std::atomic<bool> & cancel) {
    const auto lock = turn();
    throw_if(cancel);
    enqueue(graph);
    settle();
}

std::unique_ptr<Recording> MetalDevice::record(ggml_cgraph * graph, const Transfer & in, const Transfer & out) {
    return std::make_unique<MetalRecording>(*this, graph, in, out);
}

std::unique_ptr<LayerView> MetalDevice::layer_view(const std::vector<const ggml_zipcache_format *> &) {
    return std::make_unique<MetalLayerView>(*this);
}

std::unique_ptr<BatchView> MetalDevice::batch_view(const std::vector<const LayerView *> & layers) {
    return std::make_unique<MetalBatchView>(*this, layers);
}

ggml_tensor * MetalDevice::fill_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * spans) {
    return own_node_inplace(ctx, kFillMask, mask, spans);
}

ggml_backend_buffer_t MetalDevice::allocate_tensors(ggml_context * context) {
    const auto lock = turn();
    const size_t alignment = ggml_backend_buft_get_alignment(memory());
    size_t n_bytes = 0;
    for (ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
        n_bytes += (ggml_backend_buft_get_alloc_size(memory(), t) + alignment - 1) / alignment * alignment;
    }
    ggml_backend_buffer_t buffer = arena_.allocate_buffer(n_bytes);
    if (buffer) {
        ggml_tallocr places = ggml_tallocr_new(buffer);
        for (ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
            ggml_tallocr_alloc(&places, t);
        }
    }
    return buffer;
}

void MetalDevice::release_tensors(ggml_backend_buffer_t buffer) {
    const auto lock = turn();
    try {
        settle();
    } catch (const Error &) {  // NOLINT(bugprone-empty-catch): memory goes whatever failed, and the next call tells
    }
    arena_.release_buffer(buffer);
}

void * MetalDevice::allocate(size_t n_bytes) {
    const auto lock = turn();
    return arena_.allocate(n_bytes);
}

void MetalDevice::release(void * memory) {
    const auto lock = turn();
    try {
        settle();
    } catch (const Error &) {  // NOLINT(bugprone-empty-catch): as above
    }
    arena_.release(memory);
}

void MetalDevice::clear(void * memory, size_t n_bytes) {
    const auto lock = turn();
    settle();
    std::memset(memory, 0, n_bytes);
}

void MetalDevice::copy(void * to, size_t to_stride, const void * from, size_t from_stride, size_t width, size_t n) {
    const auto lock = turn();
    settle();
    for (size_t i = 0; width > 0 && i < n; ++i) {  // of nothing, pointers may be null
        std::memcpy(static_cast<char *>(to) + i * to_stride, static_cast<const char *>(from) + i * from_stride, width);
    }
}

void MetalDevice::read(void * host, const void * from, size_t n_bytes) {
    copy(host, 0, from, 0, n_bytes, 1);
}

void MetalDevice::write(void * to, const void * host, size_t n_bytes) {
    copy(to, 0, host, 0, n_bytes, 1);
}

ggml_zipcache_metal_address MetalDevice::address(const void * at) const {
    const auto lock = turn();
    return arena_.address(at);
}

ggml_zipcache_metal_address MetalDevice::format(const ggml_zipcache_format & format) {
    const auto lock = turn();
    std::vector<uint8_t> bytes(ggml_zipcache_metal_format_bytes());
    check(ggml_zipcache_metal_write_format(&format, bytes.data()), "a segment's format");
    for (const Bytes & known : formats_) {
        if (std::memcmp(known.as(), bytes.data(), bytes.size()) == 0) {
            return address(known.as());
        }
    }
    formats_.emplace_back(*this, bytes.size());
    std::memcpy(formats_.back().as(), bytes.data(), bytes.size());
    return address(formats_.back().as());
}

ggml_zipcache_metal_address MetalDevice::workspace(size_t n_bytes) {
    const auto lock = turn();
    if (workspace_.size() < n_bytes) {
        workspace_ = Bytes();
        workspace_ = Bytes(*this, n_bytes);
    }
    return address(workspace_.as());
}

void check(const char * error, const char * op) {
    if (error) {
        throw ModelError(std::string("Metal: ") + op + ": " + error);
    }
}

}  // namespace zipcache::metal

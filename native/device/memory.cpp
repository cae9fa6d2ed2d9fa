#include "device/memory.h"

#include <utility>

#include "common/error.h"

namespace zipcache {
namespace {

constexpr size_t kAlign = 64;  // bytes between the arrays' beginnings

GgmlBuffer allocate(ggml_backend_buffer_type_t type, size_t n_bytes) {
    GgmlBuffer buffer(ggml_backend_buft_alloc_buffer(type, n_bytes));
    if (!buffer) {
        throw ContextError("not enough memory for " + std::to_string(n_bytes) + " bytes");
    }
    return buffer;
}

}  // namespace

Bytes::Bytes(Device & device, size_t n_bytes) : device_(&device), size_(n_bytes) {
    data_ = n_bytes > 0 ? device.allocate(n_bytes) : nullptr;
    if (n_bytes > 0 && !data_) {
        throw ContextError("not enough memory for " + std::to_string(n_bytes) + " bytes");
    }
}

Bytes::Bytes(Bytes && other) noexcept
    : device_(other.device_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Bytes & Bytes::operator=(Bytes && other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

Bytes::~Bytes() {
    if (data_) {
        device_->release(data_);
    }
}

void Bytes::clear() {
    if (data_) {
        device_->clear(data_, size_);
    }
}

TensorMemory::TensorMemory(Device & device, ggml_context * context)
    : device_(&device), buffer_(device.allocate_tensors(context)) {}

TensorMemory::TensorMemory(TensorMemory && other) noexcept
    : device_(other.device_), buffer_(std::exchange(other.buffer_, nullptr)) {}

TensorMemory & TensorMemory::operator=(TensorMemory && other) noexcept {
    std::swap(device_, other.device_);
    std::swap(buffer_, other.buffer_);
    return *this;
}

TensorMemory::~TensorMemory() {
    if (buffer_) {
        device_->release_tensors(buffer_);
    }
}

OwnTensor::OwnTensor(Device & device, ggml_type type, int64_t n_columns, int64_t n_rows, int64_t n_planes)
    : context(ggml_init({ggml_tensor_overhead(), nullptr, true})) {
    tensor = ggml_new_tensor_3d(context.get(), type, n_columns, n_rows, n_planes);
    memory = TensorMemory(device, context.get());
    if (!memory) {
        throw ContextError("not enough memory for " + std::to_string(ggml_nbytes(tensor)) + " bytes of activations");
    }
}

Inputs::Inputs(Device & device, const std::vector<InputShape> & shapes)
    : device_(device), context_(ggml_init({(shapes.size() + 1) * ggml_tensor_overhead(), nullptr, true})) {
    size_t n_bytes = 0;
    for (const InputShape & shape : shapes) {
        arrays_.push_back(ggml_new_tensor_2d(context_.get(), shape.type, shape.n_columns, shape.n_rows));
        offsets_.push_back(n_bytes);
        n_bytes += (ggml_nbytes(arrays_.back()) + kAlign - 1) / kAlign * kAlign;
    }
    memory_ = allocate(device.memory(), n_bytes);
    auto * base = static_cast<char *>(ggml_backend_buffer_get_base(memory_.get()));
    for (size_t i = 0; i < shapes.size(); ++i) {
        ggml_backend_tensor_alloc(memory_.get(), arrays_[i], base + offsets_[i]);
    }
    whole_ = ggml_new_tensor_1d(context_.get(), GGML_TYPE_I8, static_cast<int64_t>(n_bytes));
    ggml_backend_tensor_alloc(memory_.get(), whole_, base);
    if (!device.is_host()) {
        staging_ = allocate(device.staging(), n_bytes);
        base = static_cast<char *>(ggml_backend_buffer_get_base(staging_.get()));
    }
    host_ = base;
}

Staging::Staging(Device & device, size_t n_bytes) {
    if (!device.is_host()) {
        memory_ = allocate(device.staging(), n_bytes);
        host_ = ggml_backend_buffer_get_base(memory_.get());
    }
}

Transfer Staging::from(ggml_tensor * tensor) {
    if (!memory_) {
        host_ = tensor->data;
    }
    return {tensor, host_};
}

void Inputs::send() const {
    if (!device_.is_host()) {
        device_.write(whole_->data, host_, ggml_nbytes(whole_));
    }
}

}  // namespace zipcache

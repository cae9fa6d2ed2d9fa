#pragma once
#include <cstdint>
#include <vector>

#include "device/device.h"

namespace zipcache {

// A piece of a device's memory.
class Bytes {
  public:
    Bytes() = default;
    // Throws ContextError when memory runs out.
    Bytes(Device & device, size_t n_bytes);
    Bytes(Bytes && other) noexcept;
    Bytes & operator=(Bytes && other) noexcept;
    ~Bytes();
    void clear();

    template <class T = uint8_t>
    T * as() const {
        return static_cast<T *>(data_);
    }
    size_t size() const { return size_; }

  private:
    Device * device_ = nullptr;
    void * data_ = nullptr;
    size_t size_ = 0;
};

// A device's memory for the tensors of a context, outside any graph.
class TensorMemory {
  public:
    TensorMemory() = default;
    TensorMemory(Device & device, ggml_context * context);  // empty when memory runs out
    TensorMemory(TensorMemory && other) noexcept;
    TensorMemory & operator=(TensorMemory && other) noexcept;
    ~TensorMemory();

    explicit operator bool() const { return buffer_; }
    size_t size() const { return buffer_ ? ggml_backend_buffer_get_size(buffer_) : 0; }
    void clear() { ggml_backend_buffer_clear(buffer_, 0); }

  private:
    Device * device_ = nullptr;
    ggml_backend_buffer_t buffer_ = nullptr;
};

// A tensor with memory of its own, outside any graph.
struct OwnTensor {
    GgmlContext context;
    TensorMemory memory;
    ggml_tensor * tensor = nullptr;

    OwnTensor() = default;
    // Throws ContextError when memory runs out.
    OwnTensor(Device & device, ggml_type type, int64_t n_columns, int64_t n_rows = 1, int64_t n_planes = 1);
    size_t bytes() const { return memory.size(); }
};

// An array of i32 or f32.
struct InputShape {
    int64_t n_columns;
    int64_t n_rows = 1;
    ggml_type type = GGML_TYPE_I32;
};

// What the host tells a graph before it runs: some arrays, which travel to the device together.
class Inputs {
  public:
    Inputs(Device & device, const std::vector<InputShape> & shapes);

    ggml_tensor * tensor(int array) const { return arrays_[array]; }
    // Where the host writes.
    template <class T = int32_t>
    T * host(int array) const {
        return reinterpret_cast<T *>(host_ + offsets_[array]);
    }
    Transfer transfer() const { return {whole_, host_}; }
    void send() const;

  private:
    Device & device_;
    GgmlContext context_;
    GgmlBuffer memory_, staging_;
    std::vector<ggml_tensor *> arrays_;
    std::vector<size_t> offsets_;  // bytes
    ggml_tensor * whole_ = nullptr;
    char * host_ = nullptr;
};

// What a graph leaves for the host: the tensor's own memory where that is the host's, else a copy.
class Staging {
  public:
    // Room for n_bytes.
    Staging(Device & device, size_t n_bytes);

    Transfer from(ggml_tensor * tensor);
    const void * host() const { return host_; }

  private:
    GgmlBuffer memory_;
    void * host_ = nullptr;
};

}  // namespace zipcache

#pragma once
#include <cuda_runtime_api.h>

#include <utility>
#include <vector>

#include "cuda/check.h"

namespace zipcache::cuda {

// Memory that work on a stream uses and that is free again for what comes behind it there; nothing waits.
template <class T>
class Temporary {
  public:
    Temporary(size_t n, cudaStream_t stream) : n_(n), stream_(stream) {
        check(cudaMallocAsync(&data_, bytes() > 0 ? bytes() : 1, stream), "get memory for a compression");
    }
    // a copy of what the host has
    Temporary(const std::vector<T> & from, cudaStream_t stream) : Temporary(from.size(), stream) {
        check(cudaMemcpyAsync(data_, from.data(), bytes(), cudaMemcpyHostToDevice, stream), "send to its memory");
    }
    ~Temporary() {
        if (data_) {
            (void) cudaFreeAsync(data_, stream_);
        }
    }
    Temporary(Temporary && other) noexcept
        : n_(other.n_), stream_(other.stream_), data_(std::exchange(other.data_, nullptr)) {}
    Temporary & operator=(Temporary &&) = delete;

    T * data() const { return static_cast<T *>(data_); }
    size_t size() const { return n_; }
    size_t bytes() const { return n_ * sizeof(T); }
    void clear() { check(cudaMemsetAsync(data_, 0, bytes(), stream_), "clear its memory"); }

  private:
    size_t n_;
    cudaStream_t stream_;
    void * data_ = nullptr;
};

}  // namespace zipcache::cuda

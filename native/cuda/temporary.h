#pragma once
#include <vector>

#include "cuda/cuda_device.h"
#include "device/memory.h"

namespace zipcache::cuda {

// Memory that work on a device uses and that is free again for what comes behind it there; nothing waits.
template <class T>
class Temporary {
  public:
    Temporary(CudaDevice & device, size_t n) : n_(n), memory_(device, n * sizeof(T)) {}
    // a copy of what the host has
    Temporary(CudaDevice & device, const std::vector<T> & from) : Temporary(device, from.size()) {
        device.write(memory_.as(), from.data(), bytes());
    }

    T * data() const { return memory_.as<T>(); }
    size_t size() const { return n_; }
    size_t bytes() const { return n_ * sizeof(T); }
    void clear() { memory_.clear(); }

  private:
    size_t n_;
    Bytes memory_;
};

}  // namespace zipcache::cuda

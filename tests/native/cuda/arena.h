#pragma once
// Device memory for test cases: taken once, given out anew for each case. Inputs are gathered on the host and copied
// together.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

inline void check_cuda(cudaError_t error) {
    if (error != cudaSuccess) {
        throw std::runtime_error(cudaGetErrorString(error));
    }
}

inline void check_op(const char * error) {
    if (error) {
        throw std::runtime_error(error);
    }
}

class Arena {
  public:
    static Arena & get() {
        static Arena arena;
        arena.used_ = 0;
        return arena;
    }

    // Room for n values, poisoned at upload(): an op must write what it gives out.
    template <class T>
    T * room(size_t n, uint8_t fill = 0xFF) {
        const size_t at = (used_ + 255) / 256 * 256;
        used_ = at + n * sizeof(T);
        if (used_ > kBytes) {
            throw std::runtime_error("a test case that is larger than the arena");
        }
        host_.resize(kBytes);
        std::fill_n(host_.begin() + at, n * sizeof(T), fill);
        return reinterpret_cast<T *>(device_ + at);
    }
    template <class T>
    T * put(const std::vector<T> & values) {
        T * to = room<T>(values.size());
        std::copy_n(reinterpret_cast<const uint8_t *>(values.data()), values.size() * sizeof(T),
                    host_.begin() + (reinterpret_cast<uint8_t *>(to) - device_));
        return to;
    }
    void upload() { check_cuda(cudaMemcpy(device_, host_.data(), used_, cudaMemcpyHostToDevice)); }

    template <class T>
    std::vector<T> read(const T * from, size_t n) {
        std::vector<T> values(n);
        check_cuda(cudaMemcpy(values.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }

  private:
    static constexpr size_t kBytes = 256u << 20;
    Arena() { check_cuda(cudaMalloc(&device_, kBytes)); }
    uint8_t * device_ = nullptr;
    std::vector<uint8_t> host_;
    size_t used_ = 0;
};

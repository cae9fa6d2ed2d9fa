#pragma once
// Buffers of a test case, each shown to the emulator on its own, so that nothing may be touched between them.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <vector>

#include "emulator.h"

inline void check_op(const char * error) {
    if (error) {
        throw std::runtime_error(error);
    }
}

class Buffers {
  public:
    Buffers() = default;
    Buffers(const Buffers &) = delete;
    Buffers & operator=(const Buffers &) = delete;
    ~Buffers() { emulator::forget_buffers(); }

    // Room for n values, poisoned: an op must write what it gives out.
    template <class T>
    T * room(size_t n, uint8_t fill = 0xFF) {
        const size_t n_bytes = n * sizeof(T);
        auto & bytes = all_.emplace_back(static_cast<uint8_t *>(std::aligned_alloc(256, (n_bytes + 511) / 256 * 256)));
        std::fill_n(bytes.get(), n_bytes, fill);
        emulator::show_buffer(bytes.get(), n_bytes);
        return reinterpret_cast<T *>(bytes.get());
    }
    template <class T>
    T * put(const std::vector<T> & values) {
        T * to = room<T>(values.size());
        std::copy(values.begin(), values.end(), to);
        return to;
    }
    template <class T>
    ggml_zipcache_metal_address send(const std::vector<T> & values) {
        return address(put(values));
    }
    ggml_zipcache_metal_address send(const ggml_zipcache_format & format) {
        auto * to = room<uint8_t>(ggml_zipcache_metal_format_bytes());
        check_op(ggml_zipcache_metal_write_format(&format, to));
        return address(to);
    }
    static ggml_zipcache_metal_address address(const void * at) { return reinterpret_cast<uintptr_t>(at); }

  private:
    struct Free {
        void operator()(uint8_t * bytes) const { std::free(bytes); }
    };
    std::vector<std::unique_ptr<uint8_t, Free>> all_;
};

#pragma once
#include <map>

#include "device/pieces.h"
#include "metal/gpu.h"

namespace zipcache::metal {

// The memory that our kernels address: whole buffers of ggml's backend, and pieces of some of them. Many small buffers
// would cost a page each, and every one has to be named to Metal before a kernel may touch it.
class Arena {
  public:
    explicit Arena(Gpu & gpu) : gpu_(gpu) {}
    ~Arena();
    Arena(const Arena &) = delete;
    Arena & operator=(const Arena &) = delete;

    // Null when memory runs out.
    ggml_backend_buffer_t allocate_buffer(size_t n_bytes);
    void release_buffer(ggml_backend_buffer_t buffer);
    void * allocate(size_t n_bytes);
    void release(void * piece);
    // Where the GPU finds what the host finds at `at`; 0 for null. Throws ModelError for what is not of this memory.
    ggml_zipcache_metal_address address(const void * at) const;

  private:
    struct Region {
        GpuBuffer gpu;
        size_t size = 0;
        Pieces pieces = Pieces(0);  // of those that are cut
    };
    using Regions = std::map<const char *, Region>;  // by their first byte

    Region * add(size_t n_bytes);
    void * cut(size_t n_bytes);
    Regions::const_iterator holding(const void * at) const;

    Gpu & gpu_;
    Regions regions_;
};

}  // namespace zipcache::metal

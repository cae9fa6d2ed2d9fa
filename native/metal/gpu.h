#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "device/device.h"
#include "ggml-zipcache-metal.h"

namespace zipcache::metal {

struct GpuBuffer {
    ggml_backend_buffer_t buffer = nullptr;
    ggml_zipcache_metal_address address = 0;  // where the GPU finds its first byte
};

// What Metal does for us: all that needs an Apple system (apple_gpu.mm). Tests have an emulator in its place.
class Gpu {
  public:
    virtual ~Gpu() = default;
    virtual std::string description() const = 0;
    virtual FreeMemory free_memory() const = 0;
    virtual ggml_backend_buffer_type_t memory() const = 0;  // of ggml's backend; the host reads and writes it, too
    virtual bool computes(const ggml_tensor * node) const = 0;
    virtual int n_groups() const = 0;  // threadgroups that keep it busy

    // A buffer of that type for our kernels; null when memory runs out.
    virtual GpuBuffer allocate(size_t n_bytes) = 0;
    // Nothing that uses it is under way.
    virtual void release(ggml_backend_buffer_t buffer) = 0;
    // Of any other tensor in that memory, for kernels that are encoded before the next run() or wait().
    virtual ggml_zipcache_metal_address address(const ggml_tensor * tensor) = 0;

    // These run in the order of the calls, each when those before it have ended.
    virtual void encode(const ggml_zipcache_metal_dispatch & dispatch) = 0;
    // Nodes [first, last) by ggml's backend. Throws ContextError.
    virtual void run(ggml_cgraph * graph, int first, int last) = 0;
    // Returns when all has ended. Throws ContextError where it failed.
    virtual void wait() = 0;
};

// The system's GPU. what: its name, or why our kernels don't run on it.
struct FoundGpu {
    bool usable;
    std::string what;
};
FoundGpu find_gpu();
// Throws ModelError when it cannot be started.
std::unique_ptr<Gpu> open_gpu();

}  // namespace zipcache::metal

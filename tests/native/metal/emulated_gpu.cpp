// The GPU behind metal/metal.h in tests: our kernels emulated, ggml's CPU backend for all else. What a real one would
// only make wrong now and then is made wrong always: memory has other addresses for the GPU than for the host, and
// nothing runs before wait().
#include <sys/mman.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "common/error.h"
#include "emulated_gpu.h"
#include "emulator.h"
#include "ggml-cpu.h"
#include "metal/gpu.h"

namespace zipcache::metal {
namespace {

// The same memory at two places.
class TwicePlaced {
  public:
    explicit TwicePlaced(size_t n_bytes) : n_bytes_(n_bytes) {
        const int file = memfd_create("zipcache-test", 0);
        if (file < 0 || ftruncate(file, static_cast<off_t>(n_bytes)) != 0) {
            throw ContextError("no memory that can be mapped twice");
        }
        for (void *& view : views_) {
            view = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        }
        close(file);
    }
    ~TwicePlaced() {
        for (void * view : views_) {
            munmap(view, n_bytes_);
        }
    }
    TwicePlaced(const TwicePlaced &) = delete;
    TwicePlaced & operator=(const TwicePlaced &) = delete;

    void * of_host() const { return views_[0]; }
    void * of_gpu() const { return views_[1]; }

  private:
    size_t n_bytes_;
    void * views_[2] = {};
};

size_t pretended = 0;
std::map<const char *, size_t> seen;  // graphs' buffers, of all GPUs: first byte, bytes

// What is there now has taken the place of the graphs' buffers that were there.
void forget_seen(const char * begin, size_t n_bytes) {
    for (auto some = seen.begin(); some != seen.end();) {
        const bool overlaps = some->first < begin + n_bytes && begin < some->first + some->second;
        if (overlaps) {
            emulator::forget_buffer(some->first);
        }
        some = overlaps ? seen.erase(some) : std::next(some);
    }
}

ggml_zipcache_metal_address address_of(const void * at) {
    return reinterpret_cast<uintptr_t>(at);
}

class EmulatedGpu : public Gpu {
  public:
    EmulatedGpu() : backend_(ggml_backend_cpu_init()) { ggml_backend_cpu_set_n_threads(backend_.get(), 1); }
    ~EmulatedGpu() override = default;
    EmulatedGpu(const EmulatedGpu &) = delete;
    EmulatedGpu & operator=(const EmulatedGpu &) = delete;

    std::string description() const override { return find_gpu().what; }
    FreeMemory free_memory() const override {
        FreeMemory memory = {};
        ggml_backend_dev_memory(ggml_backend_get_device(backend_.get()), &memory.free, &memory.total);
        memory.free = pretended > 0 ? pretended : memory.free;
        return memory;
    }
    ggml_backend_buffer_type_t memory() const override { return ggml_backend_cpu_buffer_type(); }
    bool computes(const ggml_tensor * node) const override { return ggml_backend_supports_op(backend_.get(), node); }
    int n_groups() const override { return 6; }

    GpuBuffer allocate(size_t n_bytes) override {
        auto memory = std::make_unique<TwicePlaced>(n_bytes);
        ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(memory->of_host(), n_bytes);
        forget_seen(static_cast<const char *>(memory->of_gpu()), n_bytes);
        emulator::show_buffer(memory->of_gpu(), n_bytes);
        const GpuBuffer made = {buffer, address_of(memory->of_gpu())};
        ours_[buffer] = std::move(memory);
        return made;
    }
    void release(ggml_backend_buffer_t buffer) override {
        if (!pending_.empty()) {
            throw std::logic_error("memory is released that may be in use");
        }
        emulator::forget_buffer(ours_.at(buffer)->of_gpu());
        ggml_backend_buffer_free(buffer);
        ours_.erase(buffer);
    }
    ggml_zipcache_metal_address address(const ggml_tensor * tensor) override {
        show(tensor->view_src ? tensor->view_src->buffer : tensor->buffer);
        return address_of(tensor->data);
    }

    void encode(const ggml_zipcache_metal_dispatch & dispatch) override {
        const auto * from = static_cast<const uint8_t *>(dispatch.params);
        const std::vector<uint8_t> params(from, from + dispatch.params_bytes);
        pending_.emplace_back([dispatch, params] {
            ggml_zipcache_metal_dispatch copy = dispatch;
            copy.params = params.data();
            emulator::run(copy);
        });
    }
    void run(ggml_cgraph * graph, int first, int last) override {
        pending_.emplace_back([this, graph, first, last] { compute(graph, first, last); });
    }
    void wait() override {
        const auto now = std::exchange(pending_, {});
        for (const auto & work : now) {
            work();
        }
    }

  private:
    void compute(ggml_cgraph * graph, int first, int last) {
        const int n = last - first;
        const GgmlContext context(ggml_init({ggml_graph_overhead_custom(n, false), nullptr, true}));
        ggml_cgraph * stretch = ggml_new_graph_custom(context.get(), n, false);
        for (int i = first; i < last; ++i) {
            ggml_graph_add_node(stretch, ggml_graph_node(graph, i));
        }
        if (ggml_backend_graph_compute(backend_.get(), stretch) != GGML_STATUS_SUCCESS) {
            throw ContextError("ggml could not compute the graph");
        }
    }

    // Buffers of graphs come and go unseen: one that is somewhere else now has taken the place of what was there.
    void show(ggml_backend_buffer_t buffer) {
        const auto * begin = static_cast<const char *>(ggml_backend_buffer_get_base(buffer));
        const size_t n_bytes = ggml_backend_buffer_get_size(buffer);
        if (const auto known = seen.find(begin); known != seen.end() && known->second == n_bytes) {
            return;
        }
        forget_seen(begin, n_bytes);
        emulator::show_buffer(begin, n_bytes);
        seen[begin] = n_bytes;
    }

    GgmlBackend backend_;
    std::map<ggml_backend_buffer_t, std::unique_ptr<TwicePlaced>> ours_;
    std::vector<std::function<void()>> pending_;
};

}  // namespace

void pretend_free_memory(size_t n_bytes) {
    pretended = n_bytes;
}

FoundGpu find_gpu() {
    return {true, "an emulated GPU"};
}

std::unique_ptr<Gpu> open_gpu() {
    return std::make_unique<EmulatedGpu>();
}

}  // namespace zipcache::metal

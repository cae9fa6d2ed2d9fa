#include <algorithm>

#include "common/error.h"
#include "metal/arena.h"
#include "pieces_sample.h"

using namespace zipcache;

namespace {

// Memory of the host under addresses that are none of the host's.
class CountingGpu : public metal::Gpu {
  public:
    std::string description() const override { return "memory"; }
    FreeMemory free_memory() const override { return {}; }
    ggml_backend_buffer_type_t memory() const override { return ggml_backend_cpu_buffer_type(); }
    bool computes(const ggml_tensor *) const override { return false; }
    int n_groups() const override { return 1; }
    metal::GpuBuffer allocate(size_t n_bytes) override {
        if (n_bytes > most) {
            return {};
        }
        ++n_buffers;
        return {ggml_backend_buft_alloc_buffer(memory(), n_bytes), uint64_t(++n_ever) << 40};
    }
    void release(ggml_backend_buffer_t buffer) override {
        --n_buffers;
        ggml_backend_buffer_free(buffer);
    }
    ggml_zipcache_metal_address address(const ggml_tensor *) override { return 0; }
    void encode(const ggml_zipcache_metal_dispatch &) override {}
    void run(ggml_cgraph *, int, int) override {}
    void wait() override {}

    size_t most = size_t(1) << 30;
    int n_buffers = 0, n_ever = 0;
};

}  // namespace

TEST(metal_arena_pieces_are_apart_and_all_goes_back) {
    CountingGpu gpu;
    metal::Arena arena(gpu);
    std::mt19937 random(test_seed());
    auto allocate = [&](size_t n_bytes) {
        auto * piece = static_cast<char *>(arena.allocate(n_bytes));
        CHECK(reinterpret_cast<uintptr_t>(piece) % 32 == 0 && arena.address(piece) % 256 == 0);
        std::fill_n(piece, n_bytes, char(1));
        CHECK(gpu.n_buffers > 0);
        return reinterpret_cast<uintptr_t>(piece);
    };
    check_pieces_are_apart(random, allocate, [&](uintptr_t at) { arena.release(reinterpret_cast<void *>(at)); });
    CHECK(gpu.n_buffers == 0);
}

TEST(metal_arena_knows_its_addresses_and_its_end) {
    CountingGpu gpu;
    metal::Arena arena(gpu);
    ggml_backend_buffer_t buffer = arena.allocate_buffer(1000);
    const auto * base = static_cast<const char *>(ggml_backend_buffer_get_base(buffer));
    CHECK(arena.address(nullptr) == 0);
    CHECK(arena.address(base) == uint64_t(1) << 40);
    CHECK(arena.address(base + 999) == (uint64_t(1) << 40) + 999);
    CHECK_THROWS(arena.address(base + 1000), ModelError, "not of the GPU's memory");
    CHECK_THROWS(arena.address(&gpu), ModelError, "not of the GPU's memory");
    gpu.most = 2000;
    CHECK(!arena.allocate(10) && !arena.allocate_buffer(2001));
    arena.release_buffer(buffer);
    CHECK(gpu.n_buffers == 0);
}

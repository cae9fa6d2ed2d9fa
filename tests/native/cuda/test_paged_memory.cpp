#include <cuda_runtime_api.h>

#include <vector>

#include "cuda/check.h"
#include "cuda/paged_memory.h"
#include "pieces_sample.h"

using namespace zipcache;

namespace {

constexpr size_t kMiB = size_t(1) << 20;

size_t free_memory() {
    size_t free = 0, total = 0;
    cuda::check(cudaMemGetInfo(&free, &total), "tell its memory");
    return free;
}

void fill(uintptr_t at, size_t n_bytes) {
    cuda::check(cudaMemset(reinterpret_cast<void *>(at), 1, n_bytes), "fill a piece");
}

}  // namespace

TEST(paged_memory_pieces_are_apart_and_can_be_written) {
    cuda::check(cudaSetDevice(0), "choose the device");
    cuda::PagedMemory memory(0);
    std::mt19937 random(test_seed());
    auto allocate = [&](size_t n_bytes) {
        const auto at = reinterpret_cast<uintptr_t>(memory.allocate(n_bytes));
        CHECK(at != 0 && at % 256 == 0);
        fill(at, n_bytes);
        return at;
    };
    check_pieces_are_apart(random, allocate, [&](uintptr_t at) { memory.release(reinterpret_cast<void *>(at)); });
    cuda::check(cudaDeviceSynchronize(), "fill its pieces");
    CHECK(memory.idle_bytes() > 0);
    memory.trim();
    CHECK(memory.idle_bytes() == 0);
}

TEST(paged_memory_takes_what_its_pieces_take_and_gives_it_back) {
    cuda::check(cudaSetDevice(0), "choose the device");
    cuda::PagedMemory memory(0);
    const size_t before = free_memory();
    std::vector<void *> pieces;
    for (int i = 0; i < 40; ++i) {  // what 32 MiB would hold once, and leave a sixth of
        pieces.push_back(memory.allocate(27 * kMiB));
        fill(reinterpret_cast<uintptr_t>(pieces.back()), 27 * kMiB);
    }
    const size_t taken = before - free_memory();
    CHECK(taken >= 40 * 27 * kMiB && taken <= 40 * 27 * kMiB + 32 * kMiB);
    CHECK(!memory.allocate(before));  // more than there is: what there was is left as it was
    CHECK(memory.idle_bytes() > 0);
    cuda::check(cudaDeviceSynchronize(), "fill its pieces");
    memory.trim();
    CHECK(before - free_memory() == taken);
    memory.release(pieces[7]);
    memory.release(pieces[8]);
    void * between = memory.allocate(54 * kMiB);
    CHECK(between == pieces[7]);
    memory.release(between);
    for (int i = 0; i < 40; ++i) {
        if (i != 7 && i != 8) {
            memory.release(pieces[i]);
        }
    }
    memory.trim();
    CHECK(free_memory() == before);
}

TEST(paged_memory_gives_all_back_in_the_end) {
    cuda::check(cudaSetDevice(0), "choose the device");
    const size_t before = free_memory();
    {
        cuda::PagedMemory memory(0);
        CHECK(memory.allocate(300 * kMiB) && free_memory() < before - 299 * kMiB);
    }
    CHECK(free_memory() == before);
}

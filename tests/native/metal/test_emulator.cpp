// The emulator passes what is right and fails what is broken.
#include <cstring>
#include <random>

#include "attend_case.h"
#include "buffers.h"
#include "check.h"

namespace {

struct Neighbour {
    ggml_zipcache_metal_address from, to;
};

void run(const char * kernel, const Neighbour & params, uint32_t groups, uint32_t threads, uint32_t shared) {
    emulator::run({kernel, &params, sizeof params, {groups, 1, 1}, threads, shared});
}

std::vector<uint32_t> neighbour(const char * kernel) {
    Buffers buffers;
    std::vector<uint32_t> from(64);
    for (uint32_t i = 0; i < 64; ++i) {
        from[i] = i * i;
    }
    auto * to = buffers.room<uint32_t>(64);
    run(kernel, {buffers.send(from), Buffers::address(to)}, 1, 64, 64 * 4);
    return std::vector<uint32_t>(to, to + 64);
}

}  // namespace

TEST(emulator_runs_a_right_kernel) {
    const auto got = neighbour("neighbour_with_barrier");
    for (uint32_t i = 0; i < 64; ++i) {
        CHECK(got[i] == (i + 1) % 64 * ((i + 1) % 64));
    }
}

TEST(emulator_fails_broken_barriers) {
    using emulator::EmulatorError;
    CHECK_THROWS(neighbour("neighbour_without_barrier"), EmulatorError, "before it is written");
    CHECK_THROWS(neighbour("neighbour_with_simdgroup_barrier"), EmulatorError, "before it is written");
    CHECK_THROWS(neighbour("neighbour_with_barrier_of_other_memory"), EmulatorError, "a race");
    CHECK_THROWS(neighbour("neighbour_with_barrier_for_some"), EmulatorError, "not all threads of a threadgroup");
    CHECK_THROWS(neighbour("neighbour_divergent"), EmulatorError, "not all lanes");
    // and is itself again after each
    CHECK(neighbour("neighbour_with_barrier")[3] == 16);
}

TEST(emulator_fails_accesses_out_of_bounds) {
    using emulator::EmulatorError;
    CHECK_THROWS(neighbour("neighbour_beyond_buffer"), EmulatorError, "outside every buffer");
    CHECK_THROWS(neighbour("neighbour_out_of_threadgroup_memory"), EmulatorError, "outside every buffer");
    CHECK_THROWS(neighbour("neighbour_unwritten"), EmulatorError, "before it is written");
    CHECK_THROWS(neighbour("neighbour_misaligned"), EmulatorError, "misaligned");
}

TEST(emulator_fails_threads_that_write_the_same_place) {
    CHECK_THROWS(neighbour("neighbour_same_place"), emulator::EmulatorError, "a race");
}

TEST(emulator_multiplies_matrices) {
    Buffers buffers;
    std::mt19937 random(test_seed());
    std::vector<uint16_t> x(64);
    for (auto & e : x) {
        e = ggml_fp32_to_fp16(float(int(random() % 9) - 4));
    }
    auto * to = buffers.room<float>(64);
    const Neighbour params = {buffers.send(x), Buffers::address(to)};
    run("product", params, 1, 32, 128);
    for (int i = 0; i < 64; ++i) {
        float want = 0;
        for (int k = 0; k < 8; ++k) {
            want += ggml_fp16_to_fp32(x[i / 8 * 8 + k]) * ggml_fp16_to_fp32(x[k * 8 + i % 8]);
        }
        CHECK(to[i] == want);
    }
    CHECK_THROWS(run("product_without_barrier", params, 1, 32, 128), emulator::EmulatorError, "threadgroup memory");
}

TEST(emulator_orders_threadgroups_by_atomics_only) {
    Buffers buffers;
    auto * to = buffers.room<uint32_t>(1, 0);
    const Neighbour params = {0, Buffers::address(to)};
    run("count", params, 3, 64, 16);
    CHECK(*to == 3 * 64);
    run("count_without_atomics", params, 1, 64, 16);
    CHECK(*to == 3 * 64 + 1);
    CHECK_THROWS(run("count_without_atomics", params, 2, 64, 16), emulator::EmulatorError, "another threadgroup");
}

TEST(emulator_refuses_what_metal_refuses) {
    Buffers buffers;
    const Neighbour params = {0, Buffers::address(buffers.room<uint32_t>(1, 0))};
    CHECK_THROWS(run("count", params, 1, 64, 32784), emulator::EmulatorError, "refuses");
    CHECK_THROWS(run("count", params, 1, 48, 16), emulator::EmulatorError, "refuses");
    CHECK_THROWS(run("counts", params, 1, 64, 16), emulator::EmulatorError, "does not exist");
}

TEST(every_kernel_that_is_named_exists) {
    for (int i = 0; i < ggml_zipcache_metal_n_kernels(); ++i) {
        CHECK(emulator::has_kernel(ggml_zipcache_metal_kernel(i)));
    }
    CHECK(ggml_zipcache_metal_kernel(-1) == nullptr);
}

// An index that leads astray: attend_kv must not read what is not there.
TEST(emulator_fails_attend_kv_with_a_broken_index) {
    std::mt19937 random(1);
    for (int found = 0; found < 5;) {
        const Case c = random_case(random);
        Buffers buffers;
        const OnDevice d = put_case(buffers, c, 4);
        auto * index = reinterpret_cast<zipcache::metal_abi::IndexHeader *>(d.indexes[0]);
        const bool sees = index && c.sequences[0].n_tokens > 0 && c.shape.n_kv_heads == 1;
        const uint32_t n = sees ? *reinterpret_cast<uint32_t *>(index->n_blocks) : 0;
        if (n == 0 || n == index->max_blocks) {
            continue;
        }
        auto * blocks = reinterpret_cast<zipcache::metal_abi::BlockRef *>(index->blocks);
        if (++found % 2) {
            blocks[0].data += uint64_t(1) << 46;
        } else {
            ++*reinterpret_cast<uint32_t *>(index->n_blocks);  // one more than were written
        }
        Difference worst;
        CHECK_THROWS(attend(c, d, worst), emulator::EmulatorError, "outside every buffer");
    }
}

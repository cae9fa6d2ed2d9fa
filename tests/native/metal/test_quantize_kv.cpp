#include <algorithm>
#include <cstring>

#include "buffers.h"
#include "device_order.h"

namespace {

// A sample's rows quantized into `capacity` bytes.
std::vector<uint8_t> quantize(const Sample & s, size_t capacity) {
    Buffers buffers;
    const auto & f = s.format;
    const ggml_zipcache_metal_rows rows = {buffers.send(f),           s.n_tokens,           s.stride,
                                           buffers.send(s.k),         buffers.send(s.v),    buffers.send(s.k_divisor),
                                           buffers.send(s.v_divisor), buffers.send(s.tier), 0};
    auto * to = buffers.room<uint8_t>(capacity);
    auto * work = buffers.room<uint8_t>(ggml_zipcache_metal_quantize_kv_workspace(&f, s.n_tokens));
    const auto encoder = emulator::encoder();
    check_op(
        ggml_zipcache_metal_quantize_kv(&f, &rows, Buffers::address(to), capacity, Buffers::address(work), &encoder));
    return std::vector<uint8_t>(to, to + capacity);
}

}  // namespace

TEST(metal_quantize_kv_writes_what_the_cpu_writes) {
    std::mt19937 random(test_seed());
    int differ = 0;
    const int cases = n_cases(25);
    for (int i = 0; i < cases; ++i) {
        const Sample s = random_sample(random, kDeviceDims[random() % 5]);
        const size_t size = ggml_zipcache_cuda_bytes_of_cpu(&s.format, s.segment.data());
        const auto got = quantize(s, size);
        differ += check_quantized(s, got);
    }
    std::printf("  quantize_kv: %d of %d segments differ from the CPU's\n", differ, cases);
}

TEST(metal_quantize_kv_tells_that_a_segment_does_not_fit) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(5); ++i) {
        const Sample s = random_sample(random, kDeviceDims[random() % 5]);
        const size_t size = ggml_zipcache_cuda_bytes_of_cpu(&s.format, s.segment.data());
        const auto got = quantize(s, (32 + random() % (size - 32)) / 4 * 4);  // whose end the emulator guards
        uint32_t header[4];
        std::memcpy(header, got.data(), sizeof header);
        CHECK(header[0] == 0 && header[2] == size);
        CHECK(std::all_of(got.begin() + sizeof header, got.end(), [](uint8_t x) { return x == 0; }));
    }
}

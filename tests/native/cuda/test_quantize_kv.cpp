#include <algorithm>
#include <cstring>

#include "arena.h"
#include "device_order.h"

namespace {

// A sample's rows quantized on the device; capacity 0: as many bytes as it takes.
std::vector<uint8_t> quantize(const Sample & s, size_t capacity) {
    Arena & arena = Arena::get();
    const auto & f = s.format;
    const ggml_zipcache_rows rows = {
        s.n_tokens,       s.stride, arena.put(s.k), arena.put(s.v), arena.put(s.k_divisor), arena.put(s.v_divisor),
        arena.put(s.tier)};
    auto * to = arena.room<uint8_t>(capacity + 64);
    const size_t bytes = ggml_zipcache_cuda_quantize_kv_workspace(&f, s.n_tokens);
    auto * workspace = arena.room<uint8_t>(bytes);
    arena.upload();
    check_op(ggml_zipcache_cuda_quantize_kv(&f, &rows, to, capacity, workspace, bytes, nullptr));
    return arena.read(to, capacity + 64);
}

}  // namespace

TEST(cuda_quantize_kv_writes_what_the_cpu_writes) {
    std::mt19937 random(test_seed());
    int differ = 0;
    const int cases = n_cases(2000);
    for (int i = 0; i < cases; ++i) {
        const Sample s = random_sample(random, kDeviceDims[random() % 5]);
        const size_t size = ggml_zipcache_cuda_bytes_of_cpu(&s.format, s.segment.data());
        const auto got = quantize(s, size);
        CHECK(std::all_of(got.begin() + size, got.end(), [](uint8_t x) { return x == 0xFF; }));
        differ += check_quantized(s, got);
    }
    std::printf("  quantize_kv: %d of %d segments differ from the CPU's\n", differ, cases);
}

TEST(cuda_quantize_kv_tells_that_a_segment_does_not_fit) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(20); ++i) {
        const Sample s = random_sample(random, kDeviceDims[random() % 5]);
        const size_t size = ggml_zipcache_cuda_bytes_of_cpu(&s.format, s.segment.data());
        const size_t capacity = 32 + random() % (size - 32);
        const auto got = quantize(s, capacity);
        uint32_t header[4];
        std::memcpy(header, got.data(), sizeof header);
        CHECK(header[0] == 0 && header[2] == size);
        CHECK(std::all_of(got.begin() + capacity, got.end(), [](uint8_t x) { return x == 0xFF; }));
    }
}

TEST(cuda_dequantize_kv_gives_the_rows_the_cpu_gives) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(2000); ++i) {
        const Sample s = random_sample(random, kDeviceDims[random() % 5]);
        const auto & f = s.format;
        Arena & arena = Arena::get();
        std::vector<uint8_t> bytes(ggml_zipcache_cuda_bytes_of_cpu(&f, s.segment.data()));
        ggml_zipcache_cuda_from_cpu(&f, s.segment.data(), bytes.data());
        const size_t n = size_t(f.n_kv_heads) * s.stride * f.head_dim;
        const size_t n_kept = size_t(f.n_kv_heads) * s.n_tokens;
        const size_t work = ggml_zipcache_cuda_dequantize_kv_workspace(&f, s.n_tokens);
        const uint8_t * segment = arena.put(bytes);
        const ggml_zipcache_cuda_rows_out rows = {s.n_tokens,
                                                  s.stride,
                                                  arena.put(s.k_divisor),
                                                  arena.put(s.v_divisor),
                                                  arena.room<uint16_t>(n),
                                                  arena.room<uint16_t>(n),
                                                  arena.room<uint8_t>(n_kept)};
        auto * workspace = arena.room<uint8_t>(work);
        arena.upload();
        check_op(ggml_zipcache_cuda_dequantize_kv(&f, segment, &rows, workspace, work, nullptr));
        const auto k = arena.read(rows.k, n), v = arena.read(rows.v, n);
        const auto kept = arena.read(rows.kept, n_kept);
        std::vector<uint16_t> want_k(s.n_tokens * f.head_dim), want_v(want_k);
        std::vector<uint8_t> want_kept(s.n_tokens);
        double worst = 0;
        bool kept_right = true;
        for (int head = 0; head < f.n_kv_heads; ++head) {
            ggml_zipcache_dequantize_kv(&f, s.segment.data(), head, 0, s.n_tokens, s.k_divisor.data(),
                                        s.v_divisor.data(), want_k.data(), want_v.data(), want_kept.data());
            for (size_t j = 0; j < want_k.size(); ++j) {
                const size_t at = size_t(head) * s.stride * f.head_dim + j;
                for (auto [got, want] : {std::pair(k[at], want_k[j]), std::pair(v[at], want_v[j])}) {
                    const float x = ggml_fp16_to_fp32(want), d = std::fabs(ggml_fp16_to_fp32(got) - x);
                    worst = std::max(worst, std::isfinite(d) ? d / (0.1 + std::fabs(x)) : INFINITY);
                }
            }
            kept_right &= std::equal(want_kept.begin(), want_kept.end(), kept.begin() + head * s.n_tokens);
        }
        CHECK(kept_right);
        CHECK(worst < 2e-3);  // an ulp of f16
        if (!(worst < 2e-3) || !kept_right) {
            std::printf("  %g: %s\n", worst, described(s).c_str());
        }
    }
}

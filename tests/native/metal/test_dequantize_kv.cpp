#include <cmath>

#include "buffers.h"
#include "device_order.h"

namespace {

// How far the rows of a sample are from the CPU's, and whether the same tokens are kept.
struct Difference {
    double worst = 0;
    bool kept = true;
};

Difference dequantized(const Sample & s) {
    const auto & f = s.format;
    Buffers buffers;
    std::vector<uint8_t> bytes(ggml_zipcache_cuda_bytes_of_cpu(&f, s.segment.data()));
    ggml_zipcache_cuda_from_cpu(&f, s.segment.data(), bytes.data());
    const size_t n = size_t(f.n_kv_heads) * s.stride * f.head_dim, n_kept = size_t(f.n_kv_heads) * s.n_tokens;
    auto *k = buffers.room<uint16_t>(n), *v = buffers.room<uint16_t>(n);
    auto * kept = buffers.room<uint8_t>(n_kept);
    const ggml_zipcache_metal_rows rows = {buffers.send(f),
                                           s.n_tokens,
                                           s.stride,
                                           Buffers::address(k),
                                           Buffers::address(v),
                                           buffers.send(s.k_divisor),
                                           buffers.send(s.v_divisor),
                                           0,
                                           Buffers::address(kept)};
    const auto encoder = emulator::encoder();
    const auto * work = buffers.room<uint8_t>(ggml_zipcache_metal_dequantize_kv_workspace(&f, s.n_tokens));
    check_op(ggml_zipcache_metal_dequantize_kv(&f, &rows, buffers.send(bytes), Buffers::address(work), &encoder));
    Difference d;
    std::vector<uint16_t> want_k(s.n_tokens * f.head_dim), want_v(want_k);
    std::vector<uint8_t> want_kept(s.n_tokens);
    for (int head = 0; head < f.n_kv_heads; ++head) {
        ggml_zipcache_dequantize_kv(&f, s.segment.data(), head, 0, s.n_tokens, s.k_divisor.data(), s.v_divisor.data(),
                                    want_k.data(), want_v.data(), want_kept.data());
        for (size_t j = 0; j < want_k.size(); ++j) {
            const size_t at = size_t(head) * s.stride * f.head_dim + j;
            for (auto [got, want] : {std::pair(k[at], want_k[j]), std::pair(v[at], want_v[j])}) {
                const float x = ggml_fp16_to_fp32(want), off = std::fabs(ggml_fp16_to_fp32(got) - x);
                d.worst = std::max(d.worst, std::isfinite(off) ? off / (0.1 + std::fabs(x)) : INFINITY);
            }
        }
        d.kept &= std::equal(want_kept.begin(), want_kept.end(), kept + head * s.n_tokens);
    }
    return d;
}

}  // namespace

TEST(metal_dequantize_kv_gives_the_rows_the_cpu_gives) {
    std::mt19937 random(test_seed());
    double most = 0;
    for (int i = 0; i < n_cases(40); ++i) {
        const Sample s = random_sample(random, kDeviceDims[random() % 5]);
        const Difference d = dequantized(s);
        most = std::max(most, d.worst);
        CHECK(d.kept);
        CHECK(d.worst < 2e-3);  // an ulp of f16
        if (!(d.worst < 2e-3) || !d.kept) {
            std::printf("  %g: %s\n", d.worst, described(s).c_str());
        }
    }
    std::printf("  dequantize_kv: off by at most %.2g\n", most);
}

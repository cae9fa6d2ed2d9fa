#pragma once
// What a device wrote in device order, beside the CPU's segment of the same sample.
#include <cstdio>
#include <vector>

#include "check.h"
#include "ggml-zipcache-cuda.h"
#include "segment_sample.h"

constexpr int kDeviceDims[] = {64, 80, 96, 128, 256};  // head_dims that devices read

// Checks that the first bytes of `got` are the sample's segment, and tells whether any of them differs.
inline bool check_quantized(const Sample & s, const std::vector<uint8_t> & got) {
    const size_t size = ggml_zipcache_cuda_bytes_of_cpu(&s.format, s.segment.data());
    const char * error = ggml_zipcache_cuda_segment_error(&s.format, s.n_tokens, got.data(), size);
    CHECK(error == nullptr);
    if (error) {
        std::printf("  %s: %s\n", error, described(s).c_str());
        return false;
    }
    std::vector<uint8_t> want(size);
    ggml_zipcache_cuda_from_cpu(&s.format, s.segment.data(), want.data());
    int wrong = 0;
    for (size_t b = 0; b < size; ++b) {
        wrong += got[b] != want[b];
    }
    // a code or an 8-bit range may fall to the other side where a division rounds differently
    CHECK(wrong * 500 <= int(size));
    if (wrong * 500 > int(size)) {
        std::printf("  %d of %d bytes: %s\n", wrong, int(size), described(s).c_str());
    }
    return wrong > 0;
}

#pragma once
// Hands out dispatches; shared by the host sides of the ops.
#include <algorithm>
#include <cstdint>

#include "ggml-zipcache-metal.h"
#include "metal/abi.h"

namespace zipcache::metal_abi {

struct Grid {
    int64_t x, y = 1, z = 1;  // threadgroups
    int threads;
    int threadgroup_bytes = 0;
};

constexpr int kSimd = 32;
constexpr int64_t kMaxTokens = 1 << 27;  // of a segment: places and bits of tags are counted in 32 bits

class Encoder {
  public:
    explicit Encoder(const ggml_zipcache_metal_encoder & encoder) : encoder_(encoder) {}

    template <class Params>
    void dispatch(const char * kernel, const Params & params, const Grid & grid) const {
        static_assert(sizeof(Params) <= 4096, "as much as setBytes takes");
        const ggml_zipcache_metal_dispatch d = {kernel,
                                                &params,
                                                sizeof params,
                                                {uint32_t(grid.x), uint32_t(grid.y), uint32_t(grid.z)},
                                                uint32_t(grid.threads),
                                                uint32_t(std::max(16, (grid.threadgroup_bytes + 15) / 16 * 16))};
        if (grid.x > 0 && grid.y > 0 && grid.z > 0) {
            encoder_.encode(encoder_.self, &d);
        }
    }
    // n_bytes: a multiple of 4.
    void fill(Address to, uint64_t n_bytes, uint32_t word) const {
        const FillParams params = {to, n_bytes / 4, word, 0};
        constexpr int words = kFillThreads * kFillWords;
        dispatch("fill", params, {int64_t(params.n_words + words - 1) / words, 1, 1, kFillThreads});
    }

  private:
    const ggml_zipcache_metal_encoder & encoder_;
};

// The name of a kernel that exists for each head_dim, or null. names: those of 64, 80, 96, 128, 256.
inline const char * by_head_dim(int head_dim, const char * const (&names)[5]) {
    switch (head_dim) {
        case 64: return names[0];
        case 80: return names[1];
        case 96: return names[2];
        case 128: return names[3];
        case 256: return names[4];
        default: return nullptr;
    }
}

// What is wrong with a format, or null.
const char * format_error(const ggml_zipcache_format & format);

}  // namespace zipcache::metal_abi

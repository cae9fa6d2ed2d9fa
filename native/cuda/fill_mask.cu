#include "cuda/fill_mask.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kHidden = 0xFC00;  // -inf

// Two keys a thread. An odd number of keys leaves rows that begin inside a word: then one at a time.
template <int kKeys>
__global__ void fill(uint16_t * mask, const int32_t * spans, int64_t n_keys) {
    const int64_t query = blockIdx.y;
    const int first = spans[2 * query], last = spans[2 * query + 1];
    uint16_t * row = mask + query * n_keys;
    for (int64_t key = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kKeys; key < n_keys;
         key += int64_t(gridDim.x) * kThreads * kKeys) {
        unsigned word = 0;
        for (int i = 0; i < kKeys; ++i) {
            word |= (key + i >= first && key + i < last ? 0u : kHidden) << (16 * i);
        }
        if constexpr (kKeys == 2) {
            *reinterpret_cast<uint32_t *>(row + key) = word;
        } else {
            row[key] = static_cast<uint16_t>(word);
        }
    }
}

}  // namespace

void fill_mask(void * mask, const int32_t * spans, int64_t n_keys, int64_t n_queries, cudaStream_t stream) {
    const int64_t blocks = (n_keys + 4 * kThreads - 1) / (4 * kThreads);
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(n_queries));
    auto * to = static_cast<uint16_t *>(mask);
    if (n_keys % 2 == 0) {
        fill<2><<<grid, kThreads, 0, stream>>>(to, spans, n_keys);
    } else {
        fill<1><<<grid, kThreads, 0, stream>>>(to, spans, n_keys);
    }
}

}  // namespace zipcache::cuda

#pragma once
// A unit of the window: up to 32 tokens of f16. As with codes, what rounding to f16 leaves of the query and of the
// probabilities takes the rows of the multiplication that heads don't need.
#include "attend_kv_keys.cuh"
#include "attend_kv_values.cuh"

namespace zipcache::cuda {

// Rows lie with their 16-byte chunks exchanged, so that eight rows meet all banks.
template <int D>
__device__ __forceinline__ int window_byte(int row, int byte) {
    constexpr int kChunks = D / 8, kMask = (kChunks & -kChunks) < 8 ? (kChunks & -kChunks) - 1 : 7;
    return row * D * 2 + ((byte / 16) ^ (row & kMask)) * 16 + byte % 16;
}

// Starts copying rows [first, first + 32) of one side; those from `last` on repeat the last one.
template <int D>
__device__ __forceinline__ void copy_rows(uint32_t slot, const uint16_t * rows, int64_t first, int64_t last, int lane) {
    constexpr int kChunks = D / 8;
    const uint32_t to = shared_address(shared_bytes()) + slot;
    for (int i = lane; i < kWindowTokens * kChunks; i += kLanes) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int64_t token = first + row < last ? first + row : last - 1;
        copy_async(to + window_byte<D>(row, chunk * 16), rows + token * D + chunk * 8);
    }
}

// x: as load_query() has it; s [8]: the logit of token 8 (i / 2) + 2 quarter + i % 2 at [i]
template <int D>
__device__ __forceinline__ void window_logits(const float (&x)[Shape<D>::kQuarter], uint32_t slot, int n, int lane,
                                              float (&s)[8]) {
    float c[4][4] = {};
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const uint32_t a0 = half_pair(x[4 * i], x[4 * i + 1]), a2 = half_pair(x[4 * i + 2], x[4 * i + 3]);
        const uint32_t a1 = half_rest(x[4 * i], x[4 * i + 1], a0), a3 = half_rest(x[4 * i + 2], x[4 * i + 3], a2);
#pragma unroll
        for (int tile = 0; tile < 4; ++tile) {
            const int row = tile * 8 + lane / 4;
            const uint2 b = in_shared<uint2>(slot + window_byte<D>(row, (16 * i + lane % 4 * 4) * 2));
            mma_f16(c[tile], a0, a1, a2, a3, b.x, b.y);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int token = i / 2 * 8 + lane % 4 * 2 + i % 2;
        s[i] = token < n ? c[i / 2][i % 2] + c[i / 2][i % 2 + 2] : -INFINITY;
    }
}

template <int D>
__device__ __forceinline__ void add_window(uint32_t slot, float (&s)[8], int lane, Sums<D> & sums) {
    sums.move_to(Space{nullptr, 0, 0}, lane);
    float total;
    const float own = take_weights<D>(s, sums, total);
    uint32_t high[4], low[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        high[i] = half_pair(s[2 * i], s[2 * i + 1]);
        low[i] = half_rest(s[2 * i], s[2 * i + 1], high[i]);
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kRegs; i += 2) {
        float c[2][4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 16 tokens
            uint32_t b[4];
            const int row = half * 16 + lane % 16;
            load_transposed(b, shared_address(shared_bytes()) + slot + window_byte<D>(row, (i + lane / 16) * 16));
            mma_f16(c[0], high[2 * half], low[2 * half], high[2 * half + 1], low[2 * half + 1], b[0], b[1]);
            mma_f16(c[1], high[2 * half], low[2 * half], high[2 * half + 1], low[2 * half + 1], b[2], b[3]);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            sums.out[2 * i + j] = fmaf(c[j / 2][j % 2] + c[j / 2][j % 2 + 2], own, sums.out[2 * i + j]);
        }
    }
}

}  // namespace zipcache::cuda

#pragma once
// A unit of the window: up to 32 tokens of f16. As with codes, what rounding to f16 leaves of the query and of the
// probabilities takes a column of its own.
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
__device__ __noinline__ void copy_rows(uint32_t slot, const uint16_t * rows, int64_t first, int64_t last, int lane) {
    constexpr int kChunks = D / 8;
    const uint32_t to = shared_address(shared_bytes()) + slot;
    for (int i = lane; i < kWindowTokens * kChunks; i += kLanes) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int64_t token = first + row < last ? first + row : last - 1;
        copy_async(to + window_byte<D>(row, chunk * 16), rows + token * D + chunk * 8);
    }
}

// s [tile]: the logit of token 8 i + lane / 4 at [i].
template <int D, int T>
__device__ __forceinline__ void window_logits(const Queries & queries, uint32_t slot, int n, int lane,
                                              float (&s)[T][4]) {
    const bool rest = Feed(lane).low;  // the column has what rounding leaves
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        float c[2][4] = {};
#pragma unroll(T == 1 ? Shape<D>::kSteps : 2)
        for (int i = 0; i < Shape<D>::kSteps; ++i) {
            const float4 x = load_query<D>(queries, fed_head(tile, lane), i, lane);
            uint32_t b0 = half_pair(x.x, x.y), b1 = half_pair(x.z, x.w);
            b0 = rest ? half_rest(x.x, x.y, b0) : b0;
            b1 = rest ? half_rest(x.z, x.w, b1) : b1;
#pragma unroll
            for (int step = 0; step < 2; ++step) {  // 16 tokens
                const int row = step * 16 + lane / 4, byte = (16 * i + lane % 4 * 4) * 2;
                const uint2 a = in_shared<uint2>(slot + window_byte<D>(row, byte));
                const uint2 further = in_shared<uint2>(slot + window_byte<D>(row + 8, byte));
                mma_f16(c[step], a.x, further.x, a.y, further.y, b0, b1);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            s[tile][i] = 8 * i + lane / 4 < n ? c[i / 2][i % 2 * 2] + c[i / 2][i % 2 * 2 + 1] : -INFINITY;
        }
        end_of_tile();
    }
}

template <int D, int T>
__device__ __forceinline__ void add_window(uint32_t slot, float (&s)[T][4], int lane, Sums<D, T> & sums) {
    sums.move_to(Space{nullptr, 0, 0}, lane);
    const Worth<T> worth = take_weights(s, sums);
    const bool rest = Feed(lane).low;
    uint32_t b[T][2][2];  // [16 tokens][8 of them]
#pragma unroll
    for (int i = 0; i < 2 * T; ++i) {
        const int tile = i / 2, step = i % 2;
        const float p0 = s[tile][2 * step], p1 = s[tile][2 * step + 1];
        const uint32_t rounded = half_pair(p0, p1);
        // as WeightQuery::pack() does it
        const uint32_t high = transposed(rounded), low = transposed(half_rest(p0, p1, rounded));
        const uint32_t other = __shfl_xor_sync(~0u, rest ? high : low, 4);
        b[tile][step][0] = rest ? other : high;
        b[tile][step][1] = rest ? low : other;
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kRegs; i += 2) {
        float c[T][4] = {};
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            uint32_t a[4];
            const int row = step * 16 + lane % 16;
            load_transposed(a, shared_address(shared_bytes()) + slot + window_byte<D>(row, (i + lane / 16) * 16));
#pragma unroll
            for (int tile = 0; tile < T; ++tile) {
                mma_f16(c[tile], a[0], a[2], a[1], a[3], b[tile][step][0], b[tile][step][1]);
            }
        }
#pragma unroll
        for (int j = 0; j < 2 * T; ++j) {
            const int tile = j / 2, e = j % 2;
            float & sum = sums.out[tile][i + e];
            sum = fmaf(c[tile][2 * e] + c[tile][2 * e + 1], worth.own[tile], sum);
        }
    }
}

}  // namespace zipcache::cuda

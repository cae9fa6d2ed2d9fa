#pragma once
// From the sums of warps to an item's result: over the warps of a block, over the blocks that had a part of the item.
#include "attend_kv_items.cuh"
#include "attend_kv_values.cuh"
#include "cuda/row.cuh"

namespace zipcache::cuda {

// An item's sums in shared memory: acc [kRows, D] unnormalized, maximum and sum of each row.
struct Merged {
    float maximum[kRows], sum[kRows];
};

__device__ __forceinline__ void add_weighted(float4 & sum, float weight, const float4 & x) {
    sum.x = fmaf(weight, x.x, sum.x);
    sum.y = fmaf(weight, x.y, sum.y);
    sum.z = fmaf(weight, x.z, sum.z);
    sum.w = fmaf(weight, x.w, sum.w);
}

// All warps' sums, in one space. red: shared [n_warps, kRows, kRedStride].
template <int D, int T>
__device__ void merge_warps(const Sums<D, T> & sums, int n_rows, float * red, float * acc, Merged & merged) {
    using S = Shape<D>;
    __shared__ float maximum[S::kWarps][kRows], sum[S::kWarps][kRows], weight[S::kWarps][kRows];
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, n_warps = blockDim.x / kLanes;
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kRows / kTile; ++tile) {
        const int own = tile < T ? tile : 0, row = kTile * tile + lane % 4;
        if (lane < kTile) {
            maximum[warp][row] = tile < T ? sums.maximum[own] : -INFINITY;
            sum[warp][row] = sums.sum[own];
        }
        if (tile < T && row < n_rows) {
            float * to = red + (warp * kRows + row) * S::kRedStride + lane / 4;
#pragma unroll
            for (int i = 0; i < S::kRegs; ++i) {
                to[8 * i] = sums.out[own][i] + sums.offset[own];
            }
        }
    }
    __syncthreads();
    if (lane < kRows) {
        float top = -INFINITY;
        for (int w = 0; w < n_warps; ++w) {
            top = fmaxf(top, maximum[w][lane]);
        }
        weight[warp][lane] = top == -INFINITY ? 0 : exp2_fast(maximum[warp][lane] - top);
        merged.maximum[lane] = top;  // all warps write the same
    }
    __syncthreads();
    if (threadIdx.x < kRows) {
        float total = 0;
        for (int w = 0; w < n_warps; ++w) {
            total = fmaf(weight[w][threadIdx.x], sum[w][threadIdx.x], total);
        }
        merged.sum[threadIdx.x] = total;
    }
    for (int i = threadIdx.x * 4; i < n_rows * D; i += blockDim.x * 4) {
        float4 out = {};
#pragma unroll 4
        for (int w = 0; w < n_warps; ++w) {
            const float4 x = *reinterpret_cast<const float4 *>(red + (w * kRows + i / D) * S::kRedStride + i % D);
            add_weighted(out, weight[w][i / D], x);
        }
        *reinterpret_cast<float4 *>(acc + i) = out;
    }
    __syncthreads();
}

// What a block leaves of an item for the others: [kRows, head_dim] sums, then [kRows, 2]: maximum and sum.
template <int D>
__device__ __forceinline__ float * part_at(const AttendParams & p, const Item & item, int block) {
    return p.partial + int64_t(block + item.number) * kRows * (D + 2);
}

// Leaves this part of an item, and tells whether it was the last one; then acc holds them all. weight: shared
// [2, n_parts, kRows].
template <int D>
__device__ bool merge_parts(const AttendParams & p, const Item & item, const Share & share, float * weight, float * acc,
                            Merged & merged) {
    __shared__ bool last;
    const int n_values = item.n_rows * D, warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    float * own = part_at<D>(p, item, blockIdx.x);
    for (int i = threadIdx.x * 4; i < n_values; i += blockDim.x * 4) {
        *reinterpret_cast<float4 *>(own + i) = *reinterpret_cast<const float4 *>(acc + i);
    }
    if (threadIdx.x < kRows) {
        const int r = threadIdx.x;
        reinterpret_cast<float2 *>(own + kRows * D)[r] = {merged.maximum[r], merged.sum[r]};
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        last = count_arrival(&p.arrived[item.number]) + 1 == uint32_t(share.n_parts);
        if (last) {
            p.arrived[item.number] = 0;
        }
    }
    __syncthreads();
    if (!last) {
        return false;
    }
    // on their way while the weights are found: as many values as a thread has room for
    constexpr int kAhead = 16;
    const float * from = part_at<D>(p, item, share.first_part);
    auto value = [&](int i, int k) {
        return __ldcg(reinterpret_cast<const float4 *>(from + int64_t(k) * kRows * (D + 2) + i));
    };
    float4 ahead[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
        const bool there = k < share.n_parts && int(threadIdx.x) * 4 < n_values;
        ahead[k] = there ? value(threadIdx.x * 4, k) : float4{};
    }
    float * sum = weight + share.n_parts * kRows;
    for (int i = threadIdx.x; i < share.n_parts * kRows; i += blockDim.x) {
        const float * part = part_at<D>(p, item, share.first_part + i / kRows);
        const float2 own = __ldcg(reinterpret_cast<const float2 *>(part + kRows * D) + i % kRows);
        weight[i] = own.x;
        sum[i] = own.y;
    }
    __syncthreads();
    for (int r = warp; r < kRows; r += blockDim.x / kLanes) {
        float top = -INFINITY, total = 0;
        for (int k = lane; k < share.n_parts; k += kLanes) {
            top = fmaxf(top, weight[k * kRows + r]);
        }
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) {
            top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
        }
        for (int k = lane; k < share.n_parts; k += kLanes) {
            float & own = weight[k * kRows + r];
            own = top == -INFINITY ? 0 : exp2_fast(own - top);
            total = fmaf(own, sum[k * kRows + r], total);
        }
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) {
            total += __shfl_xor_sync(~0u, total, step);
        }
        if (lane == 0) {
            merged.maximum[r] = top;
            merged.sum[r] = total;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x * 4; i < n_values; i += blockDim.x * 4) {
        float4 out = {};
#pragma unroll
        for (int k = 0; k < kAhead; ++k) {
            if (k < share.n_parts) {
                add_weighted(out, weight[k * kRows + i / D], i == int(threadIdx.x) * 4 ? ahead[k] : value(i, k));
            }
        }
#pragma unroll 4
        for (int k = kAhead; k < share.n_parts; ++k) {
            add_weighted(out, weight[k * kRows + i / D], value(i, k));
        }
        *reinterpret_cast<float4 *>(acc + i) = out;
    }
    __syncthreads();
    return true;
}

// What finish() reads of an item from far, asked for early.
template <int D>
struct Ending {
    Row<D> divisor;  // of the lane's channels
    int slot;        // of the query, as a probe; below 0: none

    __device__ __forceinline__ explicit Ending(const Item & item) {
        const auto & s = *item.sequence;
        const int lane = threadIdx.x % kLanes;
        slot = s.probe_slot ? s.probe_slot[item.seen.last - 1] : -1;
#pragma unroll
        for (int i = 0; i * kLanes < D; ++i) {
            const int c = i * kLanes + lane;
            divisor[i] = item.v_home.divisor && c < D ? item.v_home.divisor[c] : 1.0f;
        }
    }
};

// Undoes the values' transform and writes an item's results.
template <int D>
__device__ void finish(const AttendParams & p, const Item & item, const Ending<D> & ending, const float * acc,
                       const Merged & merged) {
    const auto & s = *item.sequence;
    const int slot = ending.slot;
    const int64_t first = int64_t(item.row) * D, head = item.row % p.a.n_heads;
    const int lane = threadIdx.x % kLanes;
    for (int r = threadIdx.x / kLanes; r < item.n_rows; r += blockDim.x / kLanes) {
        Row<D> x;
#pragma unroll
        for (int i = 0; i * kLanes < D; ++i) {
            const int c = i * kLanes + lane;
            x[i] = c < D ? acc[r * D + c] : 0;
        }
        if (item.v_home.rotate) {
            warp_hadamard<D>(x, lane);
        }
        const float up = __fdividef(1, merged.sum[r]);
#pragma unroll
        for (int i = 0; i * kLanes < D; ++i) {
            const int c = i * kLanes + lane;
            if (c < D) {
                p.a.out[first + r * D + c] = x[i] * up * ending.divisor[i];
            }
            if (c < D && slot >= 0) {
                s.probe_q[((int64_t(slot) * p.a.n_heads + head) + r) * D + c] =
                    __half_as_ushort(__float2half_rn(p.a.q[first + r * D + c]));
            }
        }
        if (slot >= 0 && lane == 0) {
            s.probe_log_sum[int64_t(slot) * p.a.n_heads + head + r] =
                (merged.maximum[r] + log2f(merged.sum[r])) / kLog2e;
        }
    }
}

}  // namespace zipcache::cuda

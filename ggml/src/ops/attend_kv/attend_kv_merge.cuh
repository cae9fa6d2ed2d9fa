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

// Values for another block of the launch, that looks for them there: a word that is not zero has come.
__device__ __forceinline__ float not_zero(float x) {
    return x == 0 ? -0.0f : x;
}

__device__ __forceinline__ void leave(float * at, const float4 & x) {
    store_relaxed(at, float4{not_zero(x.x), not_zero(x.y), not_zero(x.z), not_zero(x.w)});
}

__device__ __forceinline__ void leave(float * at, const float2 & x) {
    store_relaxed(at, float2{not_zero(x.x), not_zero(x.y)});
}

__device__ __forceinline__ bool is_there(float x) {
    return __float_as_uint(x) != 0;
}

__device__ __forceinline__ bool is_there(const float4 & x) {
    return is_there(x.x) && is_there(x.y) && is_there(x.z) && is_there(x.w);
}

// Waits for them, and leaves zeros.
__device__ __forceinline__ float2 take(float * at) {
    float2 x;
    do {
        x = load_relaxed2(at);
    } while (!(is_there(x.x) && is_there(x.y)));
    *reinterpret_cast<float2 *>(at) = {};
    return x;
}

// Where a block leaves its part of an item for the first part's block. A word is zero until its value is there, and
// again when that was read: so no flag and no fence has to follow the values.
template <int D>
__device__ __forceinline__ float * part_at(const AttendParams & p, const Item & item, int block) {
    return p.partial + int64_t(block + item.number) * part_floats(D);
}

// All warps' sums, in one space: to acc and merged or, by another part than the first, to the place where that one
// looks for them. red: shared [n_warps, kRows, kRedStride].
template <int D, int T>
__device__ void merge_warps(const Sums<D, T> & sums, int n_rows, float * red, float * acc, Merged & merged,
                            float * part) {
    using S = Shape<D>;
    __shared__ float maximum[S::kWarps][kRows], sum[S::kWarps][kRows];
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, n_warps = blockDim.x / kLanes;
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        const int row = kTile * tile + lane % 4;
        if (row < n_rows) {
            if (lane < kTile) {
                maximum[warp][row] = sums.maximum[tile];
                sum[warp][row] = sums.sum[tile];
            }
            float * to = red + (warp * kRows + row) * S::kRedStride + lane / 4;
#pragma unroll
            for (int i = 0; i < S::kRegs; ++i) {
                to[8 * i] = sums.out[tile][i] + sums.offset[tile];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x * 4; i < n_rows * D; i += blockDim.x * 4) {
        const int row = i / D;
        float top = -INFINITY, total = 0;
        for (int w = 0; w < n_warps; ++w) {
            top = fmaxf(top, maximum[w][row]);
        }
        float4 out = {};
#pragma unroll 4
        for (int w = 0; w < n_warps; ++w) {
            const float weight = top == -INFINITY ? 0 : exp2_fast(maximum[w][row] - top);
            total = fmaf(weight, sum[w][row], total);
            add_weighted(out, weight,
                         *reinterpret_cast<const float4 *>(red + (w * kRows + row) * S::kRedStride + i % D));
        }
        if (part) {
            leave(part + i, out);
            if (i % D == 0) {
                leave(part + kRows * D + 2 * row, float2{top, total});
            }
            continue;
        }
        *reinterpret_cast<float4 *>(acc + i) = out;
        if (i % D == 0) {
            merged.maximum[row] = top;
            merged.sum[row] = total;
        }
    }
    __syncthreads();
}

// The same values of some of an item's other parts, as many as a thread has room for.
template <int D>
struct Others {
    static constexpr int kMost = 16;
    float * at;  // the values in the first of these parts
    int n;
    float4 x[kMost];

    __device__ __forceinline__ float * place(int k) const { return at + k * part_floats(D); }
    // what is there so far
    __device__ __forceinline__ Others(float * at, int n) : at(at), n(n) {
#pragma unroll
        for (int k = 0; k < kMost; ++k) {
            x[k] = k < n ? load_relaxed4(place(k)) : float4{1, 1, 1, 1};
        }
    }
    // Waits for all of them, and leaves zeros.
    __device__ __forceinline__ void take() {
        for (bool there = false; !there;) {
            there = true;
#pragma unroll
            for (int k = 0; k < kMost; ++k) {
                if (!is_there(x[k])) {
                    x[k] = load_relaxed4(place(k));
                    there = false;
                }
            }
        }
#pragma unroll
        for (int k = 0; k < kMost; ++k) {
            if (k < n) {
                *reinterpret_cast<float4 *>(place(k)) = {};
            }
        }
    }
};

// Adds the other parts of an item to its first one, in acc. weight: shared [2, n_parts, kRows].
template <int D>
__device__ void merge_parts(const AttendParams & p, const Item & item, const Share & share, float * weight, float * acc,
                            Merged & merged) {
    const int n_values = item.n_rows * D, warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
    constexpr int kMost = Others<D>::kMost;
    float * from = part_at<D>(p, item, share.first_part);
    auto part = [&](int k) { return from + int64_t(k) * part_floats(D); };
    auto others = [&](int i, int k) {
        return Others<D>(part(k) + i, i < n_values ? min(kMost, share.n_parts - k) : 0);
    };
    Others<D> first = others(threadIdx.x * 4, 1);  // on their way while the weights are found
    float * sum = weight + share.n_parts * kRows;
    for (int i = blockDim.x - 1 - threadIdx.x; i < share.n_parts * kRows; i += blockDim.x) {  // by other threads
        const int k = i / kRows, r = i % kRows;
        float2 own = {merged.maximum[r], merged.sum[r]};
        if (k > 0 && r < item.n_rows) {
            own = take(part(k) + kRows * D + 2 * r);
        }
        weight[i] = own.x;
        sum[i] = own.y;
    }
    __syncthreads();
    for (int r = warp; r < item.n_rows; r += blockDim.x / kLanes) {
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
        const float * own = weight + i / D;
        const float4 x = *reinterpret_cast<const float4 *>(acc + i);
        float4 out = {};
        add_weighted(out, *own, x);
        for (int k = 1; k < share.n_parts; k += kMost) {
            if (k > 1 || i >= int(blockDim.x) * 4) {
                first = others(i, k);
            }
            first.take();
#pragma unroll
            for (int j = 0; j < kMost; ++j) {
                if (j < first.n) {
                    add_weighted(out, own[(k + j) * kRows], first.x[j]);
                }
            }
        }
        *reinterpret_cast<float4 *>(acc + i) = out;
    }
    __syncthreads();
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

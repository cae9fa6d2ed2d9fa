#pragma once
// From the sums of warps to an item's result: over the warps of a block, over the blocks that had a part of the item.
#include "attend_kv_items.cuh"
#include "attend_kv_values.cuh"

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

__device__ __forceinline__ bool is_there(const float2 & x) {
    return is_there(x.x) && is_there(x.y);
}

__device__ __forceinline__ bool is_there(const float4 & x) {
    return is_there(x.x) && is_there(x.y) && is_there(x.z) && is_there(x.w);
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
        // of as many warps as there may be, so that all is loaded at once: those that are not there are the last again
        float top = -INFINITY, total = 0;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) {
            top = fmaxf(top, maximum[min(w, n_warps - 1)][row]);
        }
        float4 out = {};
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w) {
            const int from = min(w, n_warps - 1);
            const bool counts = w < n_warps && top > -INFINITY;
            const float weight = counts ? exp2_fast(maximum[from][row] - top) : 0;
            total = fmaf(weight, sum[from][row], total);
            add_weighted(out, weight,
                         *reinterpret_cast<const float4 *>(red + (from * kRows + row) * S::kRedStride + i % D));
        }
        if (part) {
            if (i % D == 0) {
                leave(part + kRows * D + 2 * row, float2{top, total});
            }
            leave(part + i, out);
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

// A row of some of an item's other parts in a warp: of each part 4 channels a lane, as many parts as a lane has room
// for, and one part's maximum and sum. All is looked for at once: each look is a way to the L2 cache and back.
template <int D>
struct Others {
    static constexpr int kMost = 16;
    float * at;      // the channels in the first of these parts
    float * own_at;  // maximum and sum of part `lane`
    int n;
    float4 x[kMost];
    float2 own;

    // n: 0 for a lane without channels. own_at: null for a lane without a part.
    __device__ __forceinline__ Others(float * at, int n, float * own_at) : at(at), own_at(own_at), n(n) {
        own = own_at ? float2{} : float2{-INFINITY, 1};
#pragma unroll
        for (int k = 0; k < kMost; ++k) {
            x[k] = k < n ? float4{} : float4{1, 1, 1, 1};
        }
    }
    __device__ __forceinline__ float * place(int k) const { return at + k * part_floats(D); }

    // Waits for all of it, and leaves zeros.
    __device__ __forceinline__ void take() {
        // all lanes together: where they part, what follows is run as often as they do
        for (bool all = false; !all;) {
            bool there = is_there(own);
            load_relaxed(own, own_at, !there);
#pragma unroll
            for (int k = 0; k < kMost; ++k) {
                const bool is_new = !is_there(x[k]);
                load_relaxed(x[k], place(k), is_new);
                there &= !is_new;
            }
            all = __all_sync(~0u, there);
        }
#pragma unroll
        for (int k = 0; k < kMost; ++k) {
            if (k < n) {
                *reinterpret_cast<float4 *>(place(k)) = {};
            }
        }
        if (own_at) {
            *reinterpret_cast<float2 *>(own_at) = {};
        }
    }
};

// Adds a row of an item's other parts, the first of them at `from`, to that of its first part, in acc and merged. One
// warp does all of it: threads that wait for one another would each wait for memory first.
template <int D>
__device__ __forceinline__ void add_parts(float * from, int n_parts, int row, int lane, float * acc, Merged & merged) {
    constexpr int kMost = Others<D>::kMost, kAtOnce = kLanes * 4;  // parts; channels
    float * own = acc + row * D;
    for (int k = 0; k < n_parts; k += kMost) {
        const int n = min(kMost, n_parts - k);
        float * first = from + int64_t(k) * part_floats(D);
        Others<D> others(first + row * D + lane * 4, lane * 4 < D ? n : 0,
                         lane < n ? first + lane * part_floats(D) + kRows * D + 2 * row : nullptr);
        others.take();
        const float top = warp_max(fmaxf(merged.maximum[row], others.own.x));
        const float weight = top == -INFINITY ? 0 : exp2_fast(others.own.x - top);
        const float kept = top == -INFINITY ? 0 : exp2_fast(merged.maximum[row] - top);
        const float sum = fmaf(kept, merged.sum[row], warp_sum(weight * others.own.y));
#pragma unroll
        for (int c = 0; c < D; c += kAtOnce) {
            const bool any = c + lane * 4 < D;
            if (c > 0) {
                others = Others<D>(first + row * D + c + lane * 4, any ? n : 0, nullptr);
                others.take();
            }
            float4 out = {};
            if (any) {
                add_weighted(out, kept, *reinterpret_cast<const float4 *>(own + c + lane * 4));
            }
#pragma unroll
            for (int j = 0; j < kMost; ++j) {
                add_weighted(out, __shfl_sync(~0u, weight, j), others.x[j]);
            }
            if (any) {
                *reinterpret_cast<float4 *>(own + c + lane * 4) = out;
            }
        }
        __syncwarp();
        if (lane == 0) {
            merged.maximum[row] = top;
            merged.sum[row] = sum;
        }
        __syncwarp();
    }
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

// Adds an item's other parts, undoes the values' transform and writes the results. acc, merged: of the first part.
template <int D>
__device__ void finish(const AttendParams & p, const Item & item, const Share & share, const Ending<D> & ending,
                       float * acc, Merged & merged) {
    const auto & s = *item.sequence;
    const int slot = ending.slot;
    const int64_t first = int64_t(item.row) * D, head = item.row % p.a.n_heads;
    const int lane = threadIdx.x % kLanes;
    for (int r = threadIdx.x / kLanes; r < item.n_rows; r += blockDim.x / kLanes) {
        add_parts<D>(part_at<D>(p, item, share.others), share.n_parts - 1, r, lane, acc, merged);
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

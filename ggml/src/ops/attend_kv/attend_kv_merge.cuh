#pragma once
// From the sums of warps to an item's result: over the warps of a block, over the blocks that had a part of the item.
#include "attend_kv_items.cuh"
#include "attend_kv_values.cuh"

namespace zipcache::cuda {

// Walsh-Hadamard of rows [n, head_dim] in shared memory, row r's channel c at place(r, c), by all threads together.
template <int D, class Place>
__device__ void hadamard_rows(float * rows, int n, Place && place) {
    constexpr int kSize = D & -D;
    const float norm = rsqrtf(float(kSize));
#pragma unroll 1
    for (int half = 1; half < kSize; half *= 2) {
        __syncthreads();
        for (int i = threadIdx.x; i < n * D / 2; i += blockDim.x) {
            const int pair = i % (D / 2), channel = 2 * pair - (pair & (half - 1));
            float & low = rows[place(i / (D / 2), channel)];
            float & high = rows[place(i / (D / 2), channel + half)];
            const float a = low, b = high, scale = 2 * half == kSize ? norm : 1.0f;
            low = (a + b) * scale;
            high = (a - b) * scale;
        }
    }
    __syncthreads();
}

// An item's sums in shared memory: acc [kRows, D] unnormalized, maximum and sum of each row.
struct Merged {
    float maximum[kRows], sum[kRows];
};

// All warps' sums, in one space. red: shared [n_warps, kRows, kRedStride].
template <int D>
__device__ void merge_warps(const Sums<D> & sums, int n_rows, float * red, float * acc, Merged & merged) {
    using S = Shape<D>;
    __shared__ float maximum[S::kWarps][kRows], sum[S::kWarps][kRows];
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, row = lane / 4, n_warps = blockDim.x / kLanes;
    __syncthreads();
    if (lane % 4 == 0) {
        maximum[warp][row] = sums.maximum;
        sum[warp][row] = sums.sum;
    }
    if (row < n_rows) {
        float * to = red + (warp * kRows + row) * S::kRedStride + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < S::kRegs; ++i) {
            *reinterpret_cast<float2 *>(to + 8 * i) = {sums.out[2 * i] + sums.offset,
                                                       sums.out[2 * i + 1] + sums.offset};
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_rows * D; i += blockDim.x) {
        const int r = i / D;
        float top = -INFINITY, out = 0, total = 0;
        for (int w = 0; w < n_warps; ++w) {
            top = fmaxf(top, maximum[w][r]);
        }
        const float safe = top == -INFINITY ? 0 : top;
#pragma unroll 4
        for (int w = 0; w < n_warps; ++w) {
            const float weight = exp2_fast(maximum[w][r] - safe);
            total = fmaf(weight, sum[w][r], total);
            out = fmaf(weight, red[(w * kRows + r) * S::kRedStride + i % D], out);
        }
        acc[i] = out;
        if (i % D == 0) {
            merged.maximum[r] = top;
            merged.sum[r] = total;
        }
    }
    __syncthreads();
}

// Leaves this part of an item, and tells whether it was the last of n_parts; then acc holds them all.
template <int D>
__device__ bool merge_parts(const AttendParams & p, const Item & item, int first_part, int n_parts, float * acc,
                            Merged & merged) {
    __shared__ bool last;
    constexpr int kStride = D + 2;
    auto part = [&](int block) { return p.partial + int64_t(block + item.number) * kRows * kStride; };
    float * own = part(blockIdx.x);
    for (int i = threadIdx.x; i < item.n_rows * D; i += blockDim.x) {
        own[i / D * kStride + i % D] = acc[i];
    }
    if (threadIdx.x < item.n_rows) {
        own[threadIdx.x * kStride + D] = merged.maximum[threadIdx.x];
        own[threadIdx.x * kStride + D + 1] = merged.sum[threadIdx.x];
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&p.arrived[item.number], 1u) + 1 == uint32_t(n_parts);
        if (last) {
            p.arrived[item.number] = 0;
        }
    }
    __syncthreads();
    if (!last) {
        return false;
    }
    __threadfence();
    for (int i = threadIdx.x; i < item.n_rows * D; i += blockDim.x) {
        const int r = i / D, c = i % D;
        float top = -INFINITY, out = 0, total = 0;
#pragma unroll 8
        for (int k = 0; k < n_parts; ++k) {
            top = fmaxf(top, __ldcg(part(first_part + k) + r * kStride + D));
        }
        const float safe = top == -INFINITY ? 0 : top;
#pragma unroll 8
        for (int k = 0; k < n_parts; ++k) {
            const float * from = part(first_part + k) + r * kStride;
            const float weight = exp2_fast(__ldcg(from + D) - safe);
            total = fmaf(weight, __ldcg(from + D + 1), total);
            out = fmaf(weight, __ldcg(from + c), out);
        }
        acc[i] = out;
        if (c == 0) {
            merged.maximum[r] = top;
            merged.sum[r] = total;
        }
    }
    __syncthreads();
    return true;
}

// Undoes the values' transform and writes an item's results.
template <int D>
__device__ void finish(const AttendParams & p, const Item & item, const Space & home, float * acc,
                       const Merged & merged) {
    if (home.rotate) {
        hadamard_rows<D>(acc, item.n_rows, [](int row, int channel) { return row * D + channel; });
    }
    const auto & s = *item.sequence;
    const int slot = s.probe_slot ? s.probe_slot[item.seen.last - 1] : -1;
    const int64_t first = int64_t(item.row) * D, head = item.row % p.a.n_heads;
    for (int i = threadIdx.x; i < item.n_rows * D; i += blockDim.x) {
        const float divisor = home.divisor ? home.divisor[i % D] : 1.0f;
        p.a.out[first + i] = acc[i] * divisor / merged.sum[i / D];
        if (slot >= 0) {
            s.probe_q[(int64_t(slot) * p.a.n_heads + head) * D + i] =
                __half_as_ushort(__float2half_rn(p.a.q[first + i]));
        }
    }
    if (slot >= 0 && threadIdx.x < item.n_rows) {
        const int r = threadIdx.x;
        s.probe_log_sum[int64_t(slot) * p.a.n_heads + head + r] = (merged.maximum[r] + log2f(merged.sum[r])) / kLog2e;
    }
    __syncthreads();
}

}  // namespace zipcache::cuda

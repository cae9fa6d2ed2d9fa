#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/block_sum.cuh"
#include "cuda/head_dim.h"
#include "cuda/row.cuh"
#include "cuda/tiers.h"
#include "kv/water_fill.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kGroupTokens = 64;
constexpr int kBins = 256;

__device__ float at(const uint16_t * rows, int64_t i) {
    return __half2float(reinterpret_cast<const __half *>(rows)[i]);
}

// The exclusive sum of x over the block's threads, in their order; `total` is that of all.
__device__ int sum_before(int x, int & total) {
    __shared__ int warps[kMaxWarps];
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int sum = x;
    for (int offset = 1; offset < kWarp; offset *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, sum, offset);
        sum += lane >= offset ? other : 0;
    }
    __syncthreads();
    if (lane == kWarp - 1) {
        warps[warp] = sum;
    }
    __syncthreads();
    int before = 0;
    total = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) {
        before += w < warp ? warps[w] : 0;
        total += warps[w];
    }
    return before + sum - x;
}

// A block a ranking. The bits of floats that are not negative rise with them: the n_salient-th is found 8 bits at a
// time, and of those that equal it the first ones are taken.
__global__ void rank(const float * all, int64_t n, int64_t n_salient, uint8_t * tiers) {
    const float * saliency = all + blockIdx.x * n;
    uint8_t * tier = tiers + blockIdx.x * n;
    __shared__ int bins[kBins];
    __shared__ unsigned found;
    __shared__ int64_t left;  // how many are to be taken among those with the bits found so far
    if (threadIdx.x == 0) {
        found = 0;
        left = n_salient;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < kBins; i += kThreads) {
            bins[i] = 0;
        }
        __syncthreads();
        const unsigned above = shift == 24 ? 0u : ~0u << (shift + 8);
        for (int64_t t = threadIdx.x; t < n; t += kThreads) {
            const unsigned bits = __float_as_uint(saliency[t]);
            if ((bits & above) == found) {
                atomicAdd(&bins[bits >> shift & 255u], 1);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int bin = kBins - 1;
            for (; bin > 0 && left > bins[bin]; --bin) {
                left -= bins[bin];
            }
            found |= unsigned(bin) << shift;
        }
        __syncthreads();
    }
    int64_t taken = 0;  // of those that equal it
    for (int64_t start = 0; start < n; start += kThreads) {
        const int64_t t = start + threadIdx.x;
        const unsigned bits = t < n ? __float_as_uint(saliency[t]) : 0;
        const bool equal = t < n && bits == found;
        int total;
        const int before = sum_before(equal, total);
        if (t < n) {
            tier[t] = n_salient > 0 && (bits > found || (equal && taken + before < left)) ? 0 : 1;
        }
        taken += total;
    }
}

__global__ void mean_of(const float * x, int64_t n, double * mean) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
        sum += x[i];
    }
    sum = block_all(sum, Sum());
    if (threadIdx.x == 0) {
        *mean = sum / double(n);
    }
}

constexpr int kCostWarps = 8;

// A block a group of tokens and KV head, a warp a token at a time: what squared_ranges() of kv/compress.cpp finds,
// times what an error of it costs.
template <int D>
__global__ void cost_group(CostArgs args, float * k_cost, float * v_cost) {
    constexpr int kN = (D + kWarp - 1) / kWarp;
    const KeyRows & rows = args.rows;
    const int head = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int64_t from = int64_t(blockIdx.x) * kGroupTokens, to = min(args.n, from + kGroupTokens);
    __shared__ float lows[kCostWarps][D], highs[kCostWarps][D];
    const float mean = float(*args.mean + 1e-30), floor = float(0.01 * *args.mean + 1e-30);
    const float * saliency = args.saliency + (args.n_ranks > 1 ? head * args.n : 0);
    Row<D> k_divisor, v_divisor, low, high;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
        const int c = i * kWarp + lane;
        k_divisor[i] = c < D ? args.k_divisor[head * D + c] : 1.0f;
        v_divisor[i] = c < D ? args.v_divisor[head * D + c] : 1.0f;
        low[i] = INFINITY;
        high[i] = -INFINITY;
    }
    for (int64_t t = from + warp; t < to; t += kCostWarps) {
        const int64_t row = (head * rows.stride + args.first + t) * D;
        Row<D> k, v;
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            const int c = i * kWarp + lane;
            k[i] = c < D ? at(rows.k, row + c) / k_divisor[i] : 0.0f;
            v[i] = c < D ? at(args.v, row + c) / v_divisor[i] : 0.0f;
        }
        warp_hadamard<D>(k, lane);
        warp_hadamard<D>(v, lane);
        float least = INFINITY, most = -INFINITY;
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            low[i] = fminf(low[i], k[i]);
            high[i] = fmaxf(high[i], k[i]);
            const bool lives = i * kWarp + lane < D;
            least = lives ? fminf(least, v[i]) : least;
            most = lives ? fmaxf(most, v[i]) : most;
        }
        least = warp_all(least, Least());
        most = warp_all(most, Most());
        if (lane == 0) {
            const float width = most > least ? most - least : 0.0f;
            const float share = fmaxf(saliency[t], floor) / mean;
            v_cost[head * args.n + t] = width * width * (share * args.v_weight[head]);
        }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
        const int c = i * kWarp + lane;
        if (c < D) {
            lows[warp][c] = low[i];
            highs[warp][c] = high[i];
        }
    }
    __syncthreads();
    float squares = 0;
    for (int c = threadIdx.x; c < D; c += kCostWarps * kWarp) {
        float least = INFINITY, most = -INFINITY;
        for (int w = 0; w < kCostWarps; ++w) {
            least = fminf(least, lows[w][c]);
            most = fmaxf(most, highs[w][c]);
        }
        const float width = most > least ? most - least : 0.0f;
        squares += width * width;
    }
    const float range = block_all(squares, Sum()) / float(D);
    for (int64_t t = from + threadIdx.x; t < to; t += kCostWarps * kWarp) {
        const float share = fmaxf(saliency[t], floor) / mean;
        k_cost[head * args.n + t] = range * (share * args.k_weight[head]);
    }
}

__device__ int best_tier(const SegmentSizes & s, float k, float v, float lambda) {
    float best = INFINITY;
    int chosen = 0;
    for (int t = 0; t < s.n_tiers; ++t) {
        // rounded as the host rounds: no multiply-add
        const float errors = __fadd_rn(__fmul_rn(k, s.k_error[t]), __fmul_rn(v, s.v_error[t]));
        const float cost = __fadd_rn(errors, __fmul_rn(lambda, s.bits[t]));
        if (cost < best) {
            best = cost;
            chosen = t;
        }
    }
    return chosen;
}

__device__ int64_t tier_bytes(const SegmentSizes & s, int tier, int count) {
    constexpr int kTile = GGML_ZIPCACHE_TILE;
    return int64_t(count / s.group) * s.block[tier][s.group / kTile] +
           s.block[tier][(count % s.group + kTile - 1) / kTile];
}

constexpr int kFillThreads = 512, kFillBlocks = 128;

// The bracket around lambda, in device memory: zeros before the first launch.
struct Bracket {
    double low, high;
    unsigned most;     // the largest cost: floats that are not negative compare as their bits do
    unsigned n_ready;  // blocks that have counted
    // then counts [n_kv_heads, n_tiers]: tokens that take each tier at the bracket's middle
    __device__ int * counts() { return reinterpret_cast<int *>(this + 1); }
};

__global__ void find_most(int64_t n, const float * k, const float * v, Bracket * bracket) {
    float most = 0;
    for (int64_t i = blockIdx.x * kFillThreads + threadIdx.x; i < n; i += gridDim.x * kFillThreads) {
        most = fmaxf(most, fmaxf(k[i], v[i]));
    }
    most = block_all(most, Most());
    if (threadIdx.x == 0) {
        atomicMax(&bracket->most, __float_as_uint(most));
    }
}

// Halves the bracket by what the whole segment takes at its middle: all blocks count, the last one decides.
__global__ void halve(const __grid_constant__ SegmentSizes s, int n_kv_heads, int64_t n, const float * k,
                      const float * v, double most_bytes, bool first, Bracket * bracket) {
    extern __shared__ int counts[];  // [n_kv_heads, n_tiers]
    __shared__ bool is_last;
    const int n_counts = n_kv_heads * s.n_tiers;
    // beyond the first one every token takes the fewest bits
    const double high = first ? double(__uint_as_float(bracket->most)) * 4 + 1e-30 : bracket->high;
    const double low = first ? high * 1e-18 : bracket->low, middle = sqrt(low * high);
    for (int i = threadIdx.x; i < n_counts; i += kFillThreads) {
        counts[i] = 0;
    }
    __syncthreads();
    for (int64_t i = blockIdx.x * kFillThreads + threadIdx.x; i < n_kv_heads * n; i += gridDim.x * kFillThreads) {
        atomicAdd(&counts[i / n * s.n_tiers + best_tier(s, k[i], v[i], float(middle))], 1);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_counts; i += kFillThreads) {
        atomicAdd(&bracket->counts()[i], counts[i]);
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        is_last = atomicAdd(&bracket->n_ready, 1u) + 1 == gridDim.x;
    }
    __syncthreads();
    if (!is_last) {
        return;
    }
    __threadfence();
    int64_t bytes = 0;
    for (int i = threadIdx.x; i < n_counts; i += kFillThreads) {
        bytes += tier_bytes(s, i % s.n_tiers, atomicExch(&bracket->counts()[i], 0));
    }
    bytes = block_all(bytes, Sum());
    if (threadIdx.x == 0) {
        const bool fits = double(s.fixed + bytes) <= most_bytes;
        bracket->high = fits ? middle : high;
        bracket->low = fits ? low : middle;
        bracket->n_ready = 0;
    }
}

__global__ void choose(const __grid_constant__ SegmentSizes s, int64_t n, const float * k, const float * v,
                       const Bracket * bracket, uint8_t * tier) {
    const int64_t i = blockIdx.x * int64_t(kFillThreads) + threadIdx.x;
    if (i < n) {
        tier[i] = static_cast<uint8_t>(best_tier(s, k[i], v[i], float(bracket->high)));
    }
}

}  // namespace

void top_ratio(const float * saliency, int32_t n_ranks, int64_t n, int64_t n_salient, uint8_t * tier,
               cudaStream_t stream) {
    rank<<<n_ranks, kThreads, 0, stream>>>(saliency, n, n_salient, tier);
}

void costs(const CostArgs & args, float * k_cost, float * v_cost, cudaStream_t stream) {
    const dim3 groups(static_cast<unsigned>((args.n + kGroupTokens - 1) / kGroupTokens), args.rows.n_kv_heads);
    mean_of<<<1, kThreads, 0, stream>>>(args.saliency, args.n_ranks * args.n, args.mean);
    with_head_dim(args.rows.head_dim, [&](auto dim) {
        cost_group<decltype(dim)::value><<<groups, kCostWarps * kWarp, 0, stream>>>(args, k_cost, v_cost);
    });
}

size_t water_fill_workspace(const SegmentSizes & sizes, int32_t n_kv_heads) {
    return sizeof(Bracket) + sizeof(int) * n_kv_heads * sizes.n_tiers;
}

void water_fill(const SegmentSizes & sizes, int32_t n_kv_heads, int64_t n, const float * k_cost, const float * v_cost,
                double most_bytes, uint8_t * tier, void * workspace, cudaStream_t stream) {
    auto * bracket = static_cast<Bracket *>(workspace);
    const int64_t n_all = n_kv_heads * n, n_groups = (n_all + kFillThreads - 1) / kFillThreads;
    const auto n_blocks = static_cast<unsigned>(std::min<int64_t>(kFillBlocks, n_groups));
    find_most<<<n_blocks, kFillThreads, 0, stream>>>(n_all, k_cost, v_cost, bracket);
    const size_t shared = sizeof(int) * n_kv_heads * sizes.n_tiers;
    for (int step = 0; step < kHalvings; ++step) {
        halve<<<n_blocks, kFillThreads, shared, stream>>>(sizes, n_kv_heads, n, k_cost, v_cost, most_bytes, step == 0,
                                                          bracket);
    }
    choose<<<static_cast<unsigned>(n_groups), kFillThreads, 0, stream>>>(sizes, n_all, k_cost, v_cost, bracket, tier);
}

}  // namespace zipcache::cuda

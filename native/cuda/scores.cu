#include <cuda_fp16.h>

#include "cuda/block_sum.cuh"
#include "cuda/scores.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t n) {
    return static_cast<unsigned>((n + kThreads - 1) / kThreads);
}

// A block a row and KV head; a warp a probe's head at a time.
__global__ void score_row(KeyRows rows, KnownProbes probes, float * score, float * square) {
    const int64_t t = blockIdx.x;
    const int head = blockIdx.y, group = rows.n_heads / rows.n_kv_heads, dim = rows.head_dim;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const auto * k = reinterpret_cast<const __half *>(rows.k) + (head * rows.stride + t) * dim;
    float sum = 0, squares = 0;
    for (int pair = warp; pair < probes.n * group; pair += blockDim.x / kWarp) {
        const int64_t row = probes.row[pair / group];
        if (t > row || (rows.sliding_window > 0 && t <= row - rows.sliding_window)) {
            continue;
        }
        const int64_t query = int64_t(probes.slot[pair / group]) * rows.n_heads + head * group + pair % group;
        const auto * q = reinterpret_cast<const __half *>(probes.q) + query * dim;
        float dot = 0;
        for (int c = lane; c < dim; c += kWarp) {
            dot += __half2float(q[c]) * __half2float(k[c]);
        }
        dot = warp_all(dot, Sum());
        const float p = expf(dot * rows.scale - probes.log_sum[query]);
        sum += p;
        squares += p * p;
    }
    sum = block_all(sum, Sum()) / kWarp;  // every lane has it
    squares = block_all(squares, Sum()) / kWarp;
    if (threadIdx.x == 0) {
        score[head * rows.n + t] = sum;
        square[head * rows.n + t] = squares;
    }
}

__global__ void gather(const uint16_t * slot_q, const int32_t * slot, int64_t width, float * q) {
    const auto * from = reinterpret_cast<const __half *>(slot_q) + slot[blockIdx.x] * width;
    for (int64_t i = threadIdx.x; i < width; i += blockDim.x) {
        q[blockIdx.x * width + i] = __half2float(from[i]);
    }
}

// The first of the rising numbers that is not below x.
__device__ int lower_bound(const int64_t * numbers, int n, int64_t x) {
    int first = 0;
    while (n > 0) {
        const int half = n / 2;
        const bool below = numbers[first + half] < x;
        first = below ? first + half + 1 : first;
        n = below ? n - half - 1 : half;
    }
    return first;
}

__global__ void count(const int64_t * row, int n_probes, int sliding, int64_t first, int64_t n, float * seen) {
    const int64_t t = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (t < n) {
        const int from = lower_bound(row, n_probes, first + t);
        const int to = sliding > 0 ? lower_bound(row, n_probes, first + t + sliding) : n_probes;
        seen[t] = static_cast<float>(to - from);
    }
}

__global__ void sum_heads(SaliencyArgs args, float * saliency) {
    const int64_t t = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    const int rank = blockIdx.y;
    if (t >= args.n) {
        return;
    }
    const int first = args.n_ranks > 1 ? rank : 0, last = args.n_ranks > 1 ? rank + 1 : args.n_kv_heads;
    float sum = 0;
    for (int head = first; head < last; ++head) {
        sum += args.score[head * args.n_rows + args.first + t];
    }
    if (args.normalized) {
        sum /= fmaxf(1.0f, args.seen[t]);
    }
    saliency[rank * args.n + t] = sum >= 0 ? sum : 0.0f;  // a broken model's NaN must not reach a ranking
}

}  // namespace

void score_known(const KeyRows & rows, const KnownProbes & probes, float * score, float * square, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>(rows.n), rows.n_kv_heads);
    score_row<<<grid, 128, 0, stream>>>(rows, probes, score, square);
}

void gather_queries(const uint16_t * slot_q, const int32_t * slot, int64_t n, int64_t width, float * q,
                    cudaStream_t stream) {
    if (n > 0) {
        gather<<<static_cast<unsigned>(n), kThreads, 0, stream>>>(slot_q, slot, width, q);
    }
}

void count_seen(const int64_t * row, int32_t n_probes, int32_t sliding_window, int64_t first, int64_t n, float * seen,
                cudaStream_t stream) {
    count<<<blocks_for(n), kThreads, 0, stream>>>(row, n_probes, sliding_window, first, n, seen);
}

void saliency(const SaliencyArgs & args, float * saliency, cudaStream_t stream) {
    sum_heads<<<dim3(blocks_for(args.n), args.n_ranks), kThreads, 0, stream>>>(args, saliency);
}

}  // namespace zipcache::cuda

#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/balance.h"
#include "cuda/block_sum.cuh"
#include "cuda/head_dim.h"

namespace zipcache::cuda {
namespace {

constexpr float kLeast = 1e-5f;    // of a spread or a size: a dead channel divides by something
constexpr int kSampledProbes = 6;  // whose attention is looked at row by row
constexpr int kGroupTokens = 64;
constexpr int kRowThreads = 512;

int64_t n_groups(int64_t n) {
    return (n + kGroupTokens - 1) / kGroupTokens;
}

__device__ float at(const uint16_t * rows, int64_t i) {
    return __half2float(reinterpret_cast<const __half *>(rows)[i]);
}

// Sums of a group of tokens: of the squared distances of keys from their mean, of values, and of their squares.
struct GroupSums {
    double k_scatter, v_sum, v_squares;
};

// A block a group and KV head, a thread a channel. sums [n_kv_heads, n_groups, head_dim]
__global__ void sum_groups(BalanceArgs args, GroupSums * sums) {
    const KeyRows & rows = args.rows;
    const int64_t group = blockIdx.x;
    const int head = blockIdx.y, dim = rows.head_dim, c = threadIdx.x;
    const int64_t from = group * kGroupTokens, to = min(args.n, from + kGroupTokens);
    double k_sum = 0, k_squares = 0, v_sum = 0, v_squares = 0;
    for (int64_t t = from; t < to; ++t) {
        const int64_t i = (head * rows.stride + args.first + t) * dim + c;
        const double k = at(rows.k, i), v = at(args.v, i);
        k_sum += k;
        k_squares += k * k;
        v_sum += v;
        v_squares += v * v;
    }
    const double scatter = k_squares - k_sum * k_sum / double(to - from);
    sums[(int64_t(head) * gridDim.x + group) * dim + c] = {scatter > 0 ? scatter : 0, v_sum, v_squares};
}

// Four neighbouring channels of a row for each lane, twice for 256 of them.
template <int D>
struct Channels {
    static constexpr int kN = D > 4 * kWarp ? 2 : 1;
    float x[kN][4];

    __device__ __forceinline__ static int first(int i) { return (i * kWarp + threadIdx.x % kWarp) * 4; }

    template <class Body>
    __device__ __forceinline__ static void each(Body && body) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            if (first(i) < D) {
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    body(i, j, first(i) + j);
                }
            }
        }
    }
    __device__ __forceinline__ void load(const uint16_t * __restrict__ row) {
#pragma unroll
        for (int i = 0; i < kN; ++i) {
            if (first(i) < D) {
                const uint2 v = __ldg(reinterpret_cast<const uint2 *>(row + first(i)));
                const float2 a = __half22float2(*reinterpret_cast<const __half2 *>(&v.x));
                const float2 b = __half22float2(*reinterpret_cast<const __half2 *>(&v.y));
                x[i][0] = a.x, x[i][1] = a.y, x[i][2] = b.x, x[i][3] = b.y;
            }
        }
    }
};

constexpr int kNoiseHeads = 2;  // query heads that a block reads a KV head for

// Attention of a sampled probe over all rows, for some query heads of a KV head: noise [n_samples, n_heads] <- the sum
// over the rows of p^2 |W_o (v - o)|^2 (diagonal of W_o). grid [n_samples, n_kv_heads, query heads of one in parts];
// p [n_samples, n_heads, rows.n]
template <int D>
__global__ void __launch_bounds__(kRowThreads)
    logit_noise(BalanceArgs args, int n_samples, float * p_all, double * noise) {
    const KeyRows & rows = args.rows;
    const int sample = blockIdx.x, head = blockIdx.y, group = rows.n_heads / rows.n_kv_heads;
    const int first_head = head * group + int(blockIdx.z) * kNoiseHeads;
    const int n_own = min(kNoiseHeads, (head + 1) * group - first_head);
    const int64_t probe = int64_t(args.n_probes) * (2 * sample + 1) / (2 * n_samples);
    const int64_t last = min(rows.n, args.probe_row[probe] + 1);
    const int64_t first = rows.sliding_window > 0 ? max(int64_t(0), last - rows.sliding_window) : 0;
    constexpr int kWarps = kRowThreads / kWarp, kAtOnce = 4;  // rows that a warp waits for at a time
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const uint16_t *keys = rows.k + head * rows.stride * D, *values = args.v + head * rows.stride * D;
    __shared__ float out[D], parts[kWarps][D];
    // where there is no head the last one is looked at again
    auto own = [&](int i) { return first_head + min(i, n_own - 1); };
    auto p_of = [&](int i) { return p_all + (int64_t(sample) * rows.n_heads + own(i)) * rows.n; };
    // calls body(row, what is there of it) for a warp's rows
    auto walk = [&](const uint16_t * from, int64_t begin, int64_t end, auto && body) {
        for (int64_t t = begin + warp * kAtOnce; t < end; t += kWarps * kAtOnce) {
            Channels<D> row[kAtOnce];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                row[i].load(from + min(t + i, end - 1) * D);
            }
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                if (t + i < end) {
                    body(t + i, row[i]);
                }
            }
        }
    };

    Channels<D> of_head[kNoiseHeads];  // the queries, later the sums, then the means
    float top[kNoiseHeads];
#pragma unroll
    for (int h = 0; h < kNoiseHeads; ++h) {
        const float * query = args.probe_q + (probe * rows.n_heads + own(h)) * D;
        Channels<D>::each([&](int i, int j, int c) { of_head[h].x[i][j] = query[c]; });
        top[h] = -INFINITY;
    }
    walk(keys, first, last, [&](int64_t t, const Channels<D> & row) {
#pragma unroll
        for (int h = 0; h < kNoiseHeads; ++h) {
            float dot = 0;
            Channels<D>::each([&](int i, int j, int) { dot += of_head[h].x[i][j] * row.x[i][j]; });
            dot = warp_all(dot, Sum()) * rows.scale;
            if (lane == 0 && h < n_own) {
                p_of(h)[t] = dot;
            }
            top[h] = fmaxf(top[h], dot);
        }
    });
#pragma unroll
    for (int h = 0; h < kNoiseHeads; ++h) {
        float * p = p_of(h);
        const float most = block_all(top[h], Most());
        if (h < n_own) {
            float sum = 0;
            for (int64_t t = first + threadIdx.x; t < last; t += kRowThreads) {
                sum += p[t] = expf(p[t] - most);
            }
            sum = block_all(sum, Sum());
            for (int64_t t = first + threadIdx.x; t < last; t += kRowThreads) {
                p[t] /= sum;
            }
        }
        Channels<D>::each([&](int i, int j, int) { of_head[h].x[i][j] = 0; });
    }
    __syncthreads();
    walk(values, first, last, [&](int64_t t, const Channels<D> & row) {
#pragma unroll
        for (int h = 0; h < kNoiseHeads; ++h) {
            const float p = p_of(h)[t];
            Channels<D>::each([&](int i, int j, int) { of_head[h].x[i][j] += p * row.x[i][j]; });
        }
    });
#pragma unroll
    for (int h = 0; h < kNoiseHeads; ++h) {
        Channels<D>::each([&](int i, int j, int c) { parts[warp][c] = of_head[h].x[i][j]; });
        __syncthreads();
        for (int c = threadIdx.x; c < D; c += kRowThreads) {
            out[c] = 0;
            for (int w = 0; w < kWarps; ++w) {
                out[c] += parts[w][c];
            }
        }
        __syncthreads();
        Channels<D>::each([&](int i, int j, int c) { of_head[h].x[i][j] = out[c]; });
    }
    Channels<D> norm[kNoiseHeads];
    double total[kNoiseHeads] = {};
#pragma unroll
    for (int h = 0; h < kNoiseHeads; ++h) {
        Channels<D>::each([&](int i, int j, int c) { norm[h].x[i][j] = args.norms[int64_t(own(h)) * D + c]; });
    }
    walk(values, max(first, args.first), min(last, args.first + args.n), [&](int64_t t, const Channels<D> & row) {
#pragma unroll
        for (int h = 0; h < kNoiseHeads; ++h) {
            float distance = 0;
            Channels<D>::each([&](int i, int j, int) {
                const float d = row.x[i][j] - of_head[h].x[i][j];
                distance += norm[h].x[i][j] * d * d;
            });
            distance = warp_all(distance, Sum());
            const float p = p_of(h)[t];
            total[h] += lane == 0 && p > 1e-6f ? double(p) * p * distance : 0.0;
        }
    });
#pragma unroll
    for (int h = 0; h < kNoiseHeads; ++h) {
        const double sum = block_all(total[h], Sum());
        if (threadIdx.x == 0 && h < n_own) {
            noise[sample * rows.n_heads + own(h)] = sum;
        }
    }
}

// Sums of the probes' squared queries, of a part of them: squares [kQueryParts, n_kv_heads, head_dim]. grid
// [kQueryParts, n_kv_heads], threads [n_rows, head_dim]
constexpr int kQueryParts = 32;

__global__ void sum_queries(BalanceArgs args, double * squares) {
    const KeyRows & rows = args.rows;
    const int head = blockIdx.y, dim = rows.head_dim, c = threadIdx.x, y = threadIdx.y, n_rows = blockDim.y;
    const int group = rows.n_heads / rows.n_kv_heads;
    extern __shared__ double shared[];  // [n_rows, head_dim]
    double sum = 0;
    for (int64_t i = int64_t(blockIdx.x) * n_rows + y; i < int64_t(args.n_probes) * group; i += kQueryParts * n_rows) {
        const double q = args.probe_q[(i / group * rows.n_heads + head * group + i % group) * dim + c];
        sum += q * q;
    }
    shared[y * dim + c] = sum;
    __syncthreads();
    if (y == 0) {
        for (int i = 1; i < n_rows; ++i) {
            sum += shared[i * dim + c];
        }
        squares[(int64_t(blockIdx.x) * rows.n_kv_heads + head) * dim + c] = sum;
    }
}

// A block a KV head: threads [n_rows, head_dim].
constexpr int kMostThreads = 1024;

__global__ void finish(BalanceArgs args, const GroupSums * sums, const double * squares, const double * noise,
                       int n_samples, BalanceOut out) {
    const KeyRows & rows = args.rows;
    const int head = blockIdx.x, dim = rows.head_dim, c = threadIdx.x, y = threadIdx.y, n_rows = blockDim.y;
    const int group = rows.n_heads / rows.n_kv_heads;
    extern __shared__ GroupSums parts[];  // [n_rows, head_dim]
    const int64_t n_groups = (args.n + kGroupTokens - 1) / kGroupTokens;
    GroupSums all = {};
    auto add = [&](const GroupSums & s) {
        all.k_scatter += s.k_scatter;
        all.v_sum += s.v_sum;
        all.v_squares += s.v_squares;
    };
    for (int64_t g = y; g < n_groups; g += n_rows) {
        add(sums[(head * n_groups + g) * dim + c]);
    }
    parts[y * dim + c] = all;
    __syncthreads();
    double k_part = 0, v_part = 0;
    if (y == 0) {
        for (int i = 1; i < n_rows; ++i) {
            add(parts[i * dim + c]);
        }
        double q_squares = 0;
        for (int i = 0; i < kQueryParts; ++i) {
            q_squares += squares[(int64_t(i) * rows.n_kv_heads + head) * dim + c];
        }
        const double n = double(args.n);
        const float k_spread = fmaxf(kLeast, float(sqrt(all.k_scatter / n)));
        const float v_spread = fmaxf(kLeast, float(sqrt(fmax(0.0, all.v_squares - all.v_sum * all.v_sum / n) / n)));
        const float q_size =
            args.n_probes > 0 ? fmaxf(kLeast, float(sqrt(q_squares / (double(args.n_probes) * group)))) : 1.0f;
        float read = 0;
        for (int r = head * group; r < (head + 1) * group; ++r) {
            read += args.norms[int64_t(r) * dim + c];
        }
        const float k = sqrtf(k_spread / q_size), v = sqrtf(v_spread / sqrtf(read));
        out.k_divisor[head * dim + c] = k;
        out.v_divisor[head * dim + c] = v;
        k_part = double(q_size) * q_size * k * k / dim;
        v_part = double(read) * v * v;
    }
    const double logit_noise = block_all(k_part, Sum()), value_noise = block_all(v_part, Sum());
    double weight = 0;
    for (int64_t t = y * dim + c; t < args.n; t += n_rows * dim) {
        weight += args.square[head * rows.n + args.first + t] / fmaxf(1.0f, args.seen[t]);
    }
    weight = block_all(weight, Sum());
    if (c == 0 && y == 0) {
        double sensitivity = n_samples > 0 ? 0 : 1;
        for (int sample = 0; sample < n_samples; ++sample) {
            for (int r = head * group; r < (head + 1) * group; ++r) {
                sensitivity += noise[sample * rows.n_heads + r] / (double(n_samples) * double(args.n));
            }
        }
        constexpr double kKeyWeight = 4;  // found in simulation: errors of keys act together, those of values cancel
        const double scale = double(rows.scale) * rows.scale;
        out.k_weight[head] = float(kKeyWeight * sensitivity * logit_noise * scale * dim);
        out.v_weight[head] = float(weight / double(args.n) / group * value_noise);
    }
}

__global__ void most_of_group(KeyRows rows, const uint16_t * v, int64_t first, int64_t n, float * out) {
    const int head = blockIdx.y, dim = rows.head_dim, c = threadIdx.x;
    const int64_t from = int64_t(blockIdx.x) * kGroupTokens, to = min(n, from + kGroupTokens);
    float most = 0;
    for (int64_t t = from; t < to; ++t) {
        most = fmaxf(most, fabsf(at(v, (head * rows.stride + first + t) * dim + c)));
    }
    // floats that are not negative compare as their bits do
    atomicMax(reinterpret_cast<int *>(out) + head * dim + c, __float_as_int(most));
}

__global__ void root(float * x, int dim) {
    float & value = x[blockIdx.x * dim + threadIdx.x];
    value = sqrtf(fmaxf(kLeast, value));
}

int samples(const BalanceArgs & args) {
    return std::min(kSampledProbes, args.n_probes);
}

size_t sums_bytes(const BalanceArgs & args) {
    return sizeof(GroupSums) * args.rows.n_kv_heads * n_groups(args.n) * args.rows.head_dim;
}

size_t noise_bytes(const BalanceArgs & args) {
    return sizeof(double) * kSampledProbes * args.rows.n_heads;
}

size_t squares_bytes(const BalanceArgs & args) {
    return sizeof(double) * kQueryParts * args.rows.n_kv_heads * args.rows.head_dim;
}

}  // namespace

size_t balance_workspace(const BalanceArgs & args) {
    return sums_bytes(args) + noise_bytes(args) + squares_bytes(args) +
           sizeof(float) * samples(args) * args.rows.n_heads * args.rows.n;
}

void balance(const BalanceArgs & args, const BalanceOut & out, void * workspace, cudaStream_t stream) {
    const KeyRows & rows = args.rows;
    auto * at = static_cast<char *>(workspace);
    auto * sums = reinterpret_cast<GroupSums *>(at);
    auto * noise = reinterpret_cast<double *>(at += sums_bytes(args));
    auto * squares = reinterpret_cast<double *>(at += noise_bytes(args));
    auto * p = reinterpret_cast<float *>(at += squares_bytes(args));
    const int n_samples = samples(args);
    const dim3 groups(static_cast<unsigned>(n_groups(args.n)), rows.n_kv_heads);
    sum_groups<<<groups, rows.head_dim, 0, stream>>>(args, sums);
    if (n_samples > 0) {
        const int group = rows.n_heads / rows.n_kv_heads;
        const dim3 heads(n_samples, rows.n_kv_heads, (group + kNoiseHeads - 1) / kNoiseHeads);
        with_head_dim(rows.head_dim, [&](auto dim) {
            logit_noise<decltype(dim)::value><<<heads, kRowThreads, 0, stream>>>(args, n_samples, p, noise);
        });
    }
    const dim3 threads(rows.head_dim, kMostThreads / rows.head_dim);
    sum_queries<<<dim3(kQueryParts, rows.n_kv_heads), threads, sizeof(double) * threads.x * threads.y, stream>>>(
        args, squares);
    finish<<<rows.n_kv_heads, threads, sizeof(GroupSums) * threads.x * threads.y, stream>>>(args, sums, squares, noise,
                                                                                            n_samples, out);
}

void normalizer(const KeyRows & rows, const uint16_t * v, int64_t first, int64_t n, float * out, cudaStream_t stream) {
    const dim3 groups(static_cast<unsigned>(n_groups(n)), rows.n_kv_heads);
    most_of_group<<<groups, rows.head_dim, 0, stream>>>(rows, v, first, n, out);
    root<<<rows.n_kv_heads, rows.head_dim, 0, stream>>>(out, rows.head_dim);
}

}  // namespace zipcache::cuda

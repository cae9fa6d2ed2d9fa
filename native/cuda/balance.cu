#include <cuda_fp16.h>

#include <algorithm>

#include "cuda/balance.h"
#include "cuda/block_sum.cuh"

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

// Attention of one sampled probe's head over all rows, a block each: noise [n_samples, n_heads] <- the sum over the
// rows of p^2 |W_o (v - o)|^2 (diagonal of W_o). p [n_samples, n_heads, rows.n]
__global__ void logit_noise(BalanceArgs args, int n_samples, float * p_all, double * noise) {
    const KeyRows & rows = args.rows;
    const int sample = blockIdx.x, query_head = blockIdx.y, dim = rows.head_dim;
    const int head = query_head / (rows.n_heads / rows.n_kv_heads);
    const int64_t probe = int64_t(args.n_probes) * (2 * sample + 1) / (2 * n_samples);
    const int64_t last = min(rows.n, args.probe_row[probe] + 1);
    const int64_t first = rows.sliding_window > 0 ? max(int64_t(0), last - rows.sliding_window) : 0;
    float * p = p_all + (int64_t(sample) * rows.n_heads + query_head) * rows.n;
    const float * q = args.probe_q + (probe * rows.n_heads + query_head) * dim;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, n_warps = blockDim.x / kWarp;
    const int64_t base = head * rows.stride;
    extern __shared__ float out[];  // [head_dim], then [n_warps, head_dim]
    float * parts = out + dim;

    float top = -INFINITY;
    for (int64_t t = first + warp; t < last; t += n_warps) {
        float dot = 0;
        for (int c = lane; c < dim; c += kWarp) {
            dot += q[c] * at(rows.k, (base + t) * dim + c);
        }
        dot = warp_all(dot, Sum()) * rows.scale;
        if (lane == 0) {
            p[t] = dot;
        }
        top = fmaxf(top, dot);
    }
    top = block_all(top, Most());
    float sum = 0;
    for (int64_t t = first + threadIdx.x; t < last; t += blockDim.x) {
        sum += p[t] = expf(p[t] - top);
    }
    sum = block_all(sum, Sum());
    for (int64_t t = first + threadIdx.x; t < last; t += blockDim.x) {
        p[t] /= sum;
    }
    for (int c = threadIdx.x; c < n_warps * dim; c += blockDim.x) {
        parts[c] = 0;
    }
    __syncthreads();
    for (int64_t t = first + warp; t < last; t += n_warps) {
        for (int c = lane; c < dim; c += kWarp) {
            parts[warp * dim + c] += p[t] * at(args.v, (base + t) * dim + c);
        }
    }
    __syncthreads();
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        out[c] = 0;
        for (int w = 0; w < n_warps; ++w) {
            out[c] += parts[w * dim + c];
        }
    }
    __syncthreads();
    const float * norm = args.norms + int64_t(query_head) * dim;
    double total = 0;
    for (int64_t t = max(first, args.first) + warp; t < min(last, args.first + args.n); t += n_warps) {
        if (p[t] <= 1e-6f) {
            continue;
        }
        float distance = 0;
        for (int c = lane; c < dim; c += kWarp) {
            const float d = at(args.v, (base + t) * dim + c) - out[c];
            distance += norm[c] * d * d;
        }
        distance = warp_all(distance, Sum());
        total += lane == 0 ? double(p[t]) * p[t] * distance : 0.0;
    }
    total = block_all(total, Sum());
    if (threadIdx.x == 0) {
        noise[sample * rows.n_heads + query_head] = total;
    }
}

// A block a KV head: threads [kQueryRows, head_dim].
constexpr int kQueryRows = 4;

__global__ void finish(BalanceArgs args, const GroupSums * sums, const double * noise, int n_samples, BalanceOut out) {
    const KeyRows & rows = args.rows;
    const int head = blockIdx.x, dim = rows.head_dim, c = threadIdx.x, y = threadIdx.y;
    const int group = rows.n_heads / rows.n_kv_heads;
    extern __shared__ double shared[];  // [kQueryRows, head_dim]
    double squares = 0;
    for (int64_t i = y; i < int64_t(args.n_probes) * group; i += kQueryRows) {
        const int64_t query = i / group * rows.n_heads + head * group + i % group;
        const double q = args.probe_q[query * dim + c];
        squares += q * q;
    }
    shared[y * dim + c] = squares;
    __syncthreads();
    const int64_t n_groups = (args.n + kGroupTokens - 1) / kGroupTokens;
    double k_part = 0, v_part = 0;
    if (y == 0) {
        for (int i = 1; i < kQueryRows; ++i) {
            squares += shared[i * dim + c];
        }
        double scatter = 0, v_sum = 0, v_squares = 0;
        for (int64_t g = 0; g < n_groups; ++g) {
            const GroupSums & s = sums[(head * n_groups + g) * dim + c];
            scatter += s.k_scatter;
            v_sum += s.v_sum;
            v_squares += s.v_squares;
        }
        const double n = double(args.n);
        const float k_spread = fmaxf(kLeast, float(sqrt(scatter / n)));
        const float v_spread = fmaxf(kLeast, float(sqrt(fmax(0.0, v_squares - v_sum * v_sum / n) / n)));
        const float q_size =
            args.n_probes > 0 ? fmaxf(kLeast, float(sqrt(squares / (double(args.n_probes) * group)))) : 1.0f;
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
    for (int64_t t = y * dim + c; t < args.n; t += kQueryRows * dim) {
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

}  // namespace

size_t balance_workspace(const BalanceArgs & args) {
    return sums_bytes(args) + noise_bytes(args) + sizeof(float) * samples(args) * args.rows.n_heads * args.rows.n;
}

void balance(const BalanceArgs & args, const BalanceOut & out, void * workspace, cudaStream_t stream) {
    const KeyRows & rows = args.rows;
    auto * sums = static_cast<GroupSums *>(workspace);
    auto * noise = reinterpret_cast<double *>(static_cast<char *>(workspace) + sums_bytes(args));
    auto * p = reinterpret_cast<float *>(reinterpret_cast<char *>(noise) + noise_bytes(args));
    const int n_samples = samples(args);
    const dim3 groups(static_cast<unsigned>(n_groups(args.n)), rows.n_kv_heads);
    sum_groups<<<groups, rows.head_dim, 0, stream>>>(args, sums);
    if (n_samples > 0) {
        const size_t shared = sizeof(float) * rows.head_dim * (1 + kRowThreads / kWarp);
        logit_noise<<<dim3(n_samples, rows.n_heads), kRowThreads, shared, stream>>>(args, n_samples, p, noise);
    }
    const dim3 threads(rows.head_dim, kQueryRows);
    finish<<<rows.n_kv_heads, threads, sizeof(double) * kQueryRows * rows.head_dim, stream>>>(args, sums, noise,
                                                                                              n_samples, out);
}

void normalizer(const KeyRows & rows, const uint16_t * v, int64_t first, int64_t n, float * out, cudaStream_t stream) {
    const dim3 groups(static_cast<unsigned>(n_groups(n)), rows.n_kv_heads);
    most_of_group<<<groups, rows.head_dim, 0, stream>>>(rows, v, first, n, out);
    root<<<rows.n_kv_heads, rows.head_dim, 0, stream>>>(out, rows.head_dim);
}

}  // namespace zipcache::cuda

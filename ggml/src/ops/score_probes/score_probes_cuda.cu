// Attention of the probes, never as a matrix: one pass finds each row's log-sum-exp, another adds up the columns.
// Logits are products of f16 with f32 sums; the probes' queries are rounded to f16, as decode's probes are stored.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOwn = 128;    // rows, or tokens, that a block of threads keeps
constexpr int kStream = 64;  // tokens, or rows, that pass by
constexpr float kLog2e = 1.4426950408889634f;

// A row is one query head of one probe: number probe * group + head in the group.
struct Task {
    ggml_zipcache_probes p;
    float * score;   // [n_kv_heads, n_tokens]
    float * square;  // [n_kv_heads, n_tokens]
    int64_t n_rows, n_padded;
    int group;
    __half * q;       // [n_kv_heads, n_padded, head_dim]
    float * log_sum;  // [n_kv_heads, n_padded], to base 2
    float2 * part;    // [n_parts, n_kv_heads, n_padded]: maximum and sum of a part of the tokens
    int2 * seen;      // [n_padded]: tokens [x, y) that a row sees; none for padding
};

__global__ void prepare(Task t) {
    const int dim = t.p.head_dim;
    const int64_t row = blockIdx.x, probe = row / t.group;
    const int head = blockIdx.y;
    const bool used = row < t.n_rows;
    for (int c = threadIdx.x; c < dim; c += blockDim.x) {
        const float x = used ? t.p.q[(probe * t.p.n_heads + head * t.group + row % t.group) * dim + c] : 0;
        t.q[(head * t.n_padded + row) * dim + c] = __float2half_rn(x);
    }
    if (head == 0 && threadIdx.x == 0) {
        const int64_t last = used ? min(t.p.position[probe] + 1, t.p.n_tokens) : 0;
        const int64_t window = t.p.sliding_window;
        t.seen[row] = {int(window > 0 && used ? max(int64_t(0), t.p.position[probe] + 1 - window) : 0), int(last)};
    }
}

// Rows [first, first + n) of a matrix [n_all, D] to shared memory [n, D + 8]; those beyond it as zeros.
template <int D>
__device__ void load_tile(__half * tile, const __half * from, int64_t first, int64_t n_all, int n) {
    constexpr int kChunks = D / 8;
    for (int i = threadIdx.x; i < n * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        uint4 v = {};
        if (first + row < n_all) {
            v = *reinterpret_cast<const uint4 *>(from + (first + row) * D + chunk * 8);
        }
        *reinterpret_cast<uint4 *>(tile + row * (D + 8) + chunk * 8) = v;
    }
}

// c: dot products of 16 rows and 64 tokens, as fragments of 8 tokens.
template <int D>
__device__ void multiply(const __half * rows, const __half * tokens, float (&c)[8][4]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            c[i][j] = 0;
        }
    }
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4];
        load_matrices(a, rows + lane % 16 * (D + 8) + k + lane / 16 * 8);
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            uint32_t b[4];
            load_matrices(b, tokens + (i * 8 + lane / 16 * 8 + lane % 8) * (D + 8) + k + lane / 8 % 2 * 8);
            mma_f16(c[i], a[0], a[1], a[2], a[3], b[0], b[1]);
            mma_f16(c[i + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
        }
    }
}

// What any row of a tile sees. All threads call it.
__device__ int2 seen_by_any(const int2 * seen, int n) {
    __shared__ int low, high;
    __syncthreads();
    if (threadIdx.x == 0) {
        low = INT32_MAX;
        high = 0;
    }
    __syncthreads();
    if (int(threadIdx.x) < n && seen[threadIdx.x].y > 0) {
        atomicMin(&low, seen[threadIdx.x].x);
        atomicMax(&high, seen[threadIdx.x].y);
    }
    __syncthreads();
    return {low, high};
}

// First pass. grid [n_padded / kOwn, n_kv_heads, n_parts]; a warp has 16 rows. Few rows over many tokens would leave
// most of the device idle, so the tokens are parted.
template <int D>
__global__ void __launch_bounds__(kThreads) sum_rows(Task t) {
    extern __shared__ __align__(16) __half tiles[];
    __half * q = tiles;
    __half * k = tiles + kOwn * (D + 8);
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t first_row = int64_t(blockIdx.x) * kOwn;
    load_tile<D>(q, t.q + head * t.n_padded * D, first_row, t.n_padded, kOwn);
    const int2 any = seen_by_any(t.seen + first_row, kOwn);
    const int row = warp * 16 + lane / 4;
    const int2 seen[2] = {t.seen[first_row + row], t.seen[first_row + row + 8]};
    float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const auto * keys = reinterpret_cast<const __half *>(t.p.k) + head * t.p.k_stride * D;
    const int begin = any.x / kStream, n_tiles = max(0, (any.y + kStream - 1) / kStream - begin);
    const int from = begin + int(int64_t(n_tiles) * blockIdx.z / gridDim.z);
    const int to = begin + int(int64_t(n_tiles) * (blockIdx.z + 1) / gridDim.z);
    for (int token = from * kStream; token < to * kStream; token += kStream) {
        __syncthreads();
        load_tile<D>(k, keys, token, t.p.n_tokens, kStream);
        __syncthreads();
        float c[8][4];
        multiply<D>(q + warp * 16 * (D + 8), k, c);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float most = maximum[half];
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                float & logit = c[i / 2][half * 2 + i % 2];
                const int at = token + i / 2 * 8 + lane % 4 * 2 + i % 2;
                logit = at >= seen[half].x && at < seen[half].y ? logit * (t.p.scale * kLog2e) : -INFINITY;
                most = fmaxf(most, logit);
            }
            if (most > -INFINITY) {
                sum[half] *= exp2_fast(maximum[half] - most);
                maximum[half] = most;
#pragma unroll
                for (int i = 0; i < 16; ++i) {
                    sum[half] += exp2_fast(c[i / 2][half * 2 + i % 2] - most);
                }
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float top = quad_max(maximum[half]);
        const float total = quad_sum(top > -INFINITY ? sum[half] * exp2_fast(maximum[half] - top) : 0.0f);
        if (lane % 4 == 0) {
            const int64_t at = (int64_t(blockIdx.z) * gridDim.y + head) * t.n_padded + first_row + row + half * 8;
            t.part[at] = {top, total};
        }
    }
}

// The parts of a row together. A thread a row of a head.
__global__ void merge_rows(Task t, int n_parts) {
    const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x, n = t.p.n_kv_heads * t.n_padded;
    if (row >= n) {
        return;
    }
    float top = -INFINITY, total = 0;
    for (int i = 0; i < n_parts; ++i) {
        top = fmaxf(top, t.part[i * n + row].x);
    }
    for (int i = 0; i < n_parts; ++i) {
        const float2 part = t.part[i * n + row];
        total += part.y > 0 ? part.y * exp2_fast(part.x - top) : 0.0f;
    }
    t.log_sum[row] = total > 0 ? top + log2f(total) : INFINITY;
}

// Second pass. grid [tokens / kOwn, n_kv_heads]; a warp has 16 of the rows that pass by, and half of the tokens.
template <int D>
__global__ void __launch_bounds__(kThreads) sum_columns(Task t) {
    extern __shared__ __align__(16) __half tiles[];
    __shared__ float sums[2][kOwn];
    __half * k = tiles;
    __half * q = tiles + kOwn * (D + 8);
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t first_token = int64_t(blockIdx.x) * kOwn;
    load_tile<D>(k, reinterpret_cast<const __half *>(t.p.k) + head * t.p.k_stride * D, first_token, t.p.n_tokens, kOwn);
    if (threadIdx.x < kOwn) {
        sums[0][threadIdx.x] = sums[1][threadIdx.x] = 0;
    }
    const int first_column = warp / 4 * 64, row = warp % 4 * 16 + lane / 4;
    float score[16] = {}, square[16] = {};
    for (int64_t first_row = 0; first_row < t.n_padded; first_row += kStream) {
        const int2 any = seen_by_any(t.seen + first_row, kStream);
        if (any.y <= first_token || any.x >= first_token + kOwn) {
            continue;
        }
        load_tile<D>(q, t.q + head * t.n_padded * D, first_row, t.n_padded, kStream);
        __syncthreads();
        float c[8][4];
        multiply<D>(q + warp % 4 * 16 * (D + 8), k + first_column * (D + 8), c);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int2 seen = t.seen[first_row + row + half * 8];
            const float log_sum = t.log_sum[head * t.n_padded + first_row + row + half * 8];
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int64_t at = first_token + first_column + i / 2 * 8 + lane % 4 * 2 + i % 2;
                const float p = at >= seen.x && at < seen.y
                                    ? exp2_fast(fmaf(c[i / 2][half * 2 + i % 2], t.p.scale * kLog2e, -log_sum))
                                    : 0.0f;
                score[i] += p;
                square[i] = fmaf(p, p, square[i]);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        for (int step = 4; step < 32; step *= 2) {
            score[i] += __shfl_xor_sync(~0u, score[i], step);
            square[i] += __shfl_xor_sync(~0u, square[i], step);
        }
        if (lane < 4) {
            atomicAdd(&sums[0][first_column + i / 2 * 8 + lane * 2 + i % 2], score[i]);
            atomicAdd(&sums[1][first_column + i / 2 * 8 + lane * 2 + i % 2], square[i]);
        }
    }
    __syncthreads();
    if (threadIdx.x < kOwn && first_token + threadIdx.x < t.p.n_tokens) {
        const int64_t at = head * t.p.n_tokens + first_token + threadIdx.x;
        t.score[at] += sums[0][threadIdx.x];
        t.square[at] += sums[1][threadIdx.x];
    }
}

struct Sizes {
    int64_t n_padded, log_sum, part, seen, size;
    int n_parts;
};

// Enough of them to fill the device.
int parts_for(int64_t n_blocks, int64_t n_tokens) {
    constexpr int64_t kBlocksEach = 2, kLeastTokens = 2048;
    int device = 0, n_processors = 1;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
    const int64_t wanted = (kBlocksEach * n_processors + n_blocks - 1) / n_blocks;
    return int(std::max<int64_t>(1, std::min(wanted, n_tokens / kLeastTokens)));
}

Sizes sizes_of(const ggml_zipcache_probes & p, int64_t n_probes) {
    Sizes s = {};
    const int64_t n_rows = n_probes * (p.n_heads / p.n_kv_heads);
    s.n_padded = (n_rows + kOwn - 1) / kOwn * kOwn;
    s.log_sum = p.n_kv_heads * s.n_padded * p.head_dim * int64_t(sizeof(__half));
    s.n_parts = parts_for(s.n_padded / kOwn * p.n_kv_heads, p.n_tokens);
    s.part = s.log_sum + p.n_kv_heads * s.n_padded * int64_t(sizeof(float));
    s.seen = s.part + s.n_parts * p.n_kv_heads * s.n_padded * int64_t(sizeof(float2));
    s.size = s.seen + s.n_padded * int64_t(sizeof(int2));
    return s;
}

template <int D>
const char * launch(const Task & t, int n_parts, cudaStream_t stream) {
    constexpr int kShared = (kOwn + kStream) * (D + 8) * int(sizeof(__half));
    cudaFuncSetAttribute(sum_rows<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    cudaFuncSetAttribute(sum_columns<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    prepare<<<dim3(unsigned(t.n_padded), t.p.n_kv_heads), std::min(D, 128), 0, stream>>>(t);
    sum_rows<D><<<dim3(unsigned(t.n_padded / kOwn), t.p.n_kv_heads, n_parts), kThreads, kShared, stream>>>(t);
    const int64_t n_rows = t.p.n_kv_heads * t.n_padded;
    merge_rows<<<unsigned((n_rows + kThreads - 1) / kThreads), kThreads, 0, stream>>>(t, n_parts);
    const dim3 columns(unsigned((t.p.n_tokens + kOwn - 1) / kOwn), t.p.n_kv_heads);
    sum_columns<D><<<columns, kThreads, kShared, stream>>>(t);
    return launch_error();
}

}  // namespace
}  // namespace zipcache::cuda

size_t ggml_zipcache_cuda_score_probes_workspace(const ggml_zipcache_probes * probes, int64_t n_probes) {
    return probes->n_kv_heads < 1 ? 0 : zipcache::cuda::sizes_of(*probes, n_probes).size;
}

const char * ggml_zipcache_cuda_score_probes(const ggml_zipcache_probes * probes,
                                             const ggml_zipcache_cuda_scores * scores, void * workspace,
                                             size_t workspace_bytes, void * stream) {
    using namespace zipcache::cuda;
    const auto & p = *probes;
    if (p.n_kv_heads < 1 || p.n_heads < p.n_kv_heads || p.n_heads % p.n_kv_heads != 0) {
        return "score_probes got query heads that don't fit the KV heads; accepted: a multiple of them";
    }
    if (p.n_tokens < 1 || p.n_tokens > INT32_MAX || scores->n_probes < 1) {
        return "score_probes got no tokens or no probes; accepted: from 1";
    }
    const Sizes sizes = sizes_of(p, scores->n_probes);
    if (workspace_bytes < size_t(sizes.size)) {
        return "score_probes got a workspace that is too small; accepted: ggml_zipcache_cuda_score_probes_workspace()";
    }
    auto * work = static_cast<uint8_t *>(workspace);
    const int group = p.n_heads / p.n_kv_heads;
    const Task task = {p,
                       scores->score,
                       scores->square,
                       scores->n_probes * group,
                       sizes.n_padded,
                       group,
                       reinterpret_cast<__half *>(work),
                       reinterpret_cast<float *>(work + sizes.log_sum),
                       reinterpret_cast<float2 *>(work + sizes.part),
                       reinterpret_cast<int2 *>(work + sizes.seen)};
    const auto at = static_cast<cudaStream_t>(stream);
    switch (p.head_dim) {
        case 64: return launch<64>(task, sizes.n_parts, at);
        case 80: return launch<80>(task, sizes.n_parts, at);
        case 96: return launch<96>(task, sizes.n_parts, at);
        case 128: return launch<128>(task, sizes.n_parts, at);
        case 256: return launch<256>(task, sizes.n_parts, at);
        default: return "score_probes got a head_dim that it has no kernel for; accepted: 64, 80, 96, 128, 256";
    }
}

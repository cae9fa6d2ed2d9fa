// Attention of the probes, never as a matrix: one pass finds each row's log-sum-exp, another adds up the columns.
// Logits are products of f16 with f32 sums; the probes' queries are rounded to f16, as decode's probes are stored.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/ptx.cuh"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpOwn = 32;                    // rows, or tokens, that a warp keeps
constexpr int kOwn = kThreads / 32 * kWarpOwn;  // and a block of threads
constexpr int kStream = 64;                     // tokens, or rows, that pass by at a time
constexpr int kPieces = kStream / 8;            // of those that a product has
constexpr float kLog2e = 1.4426950408889634f;

// Of some rows: tokens [low, high) are seen by any, [all_low, all_high) by all of them.
struct Seen {
    int low, high, all_low, all_high;

    __device__ __forceinline__ void add(const int2 & row) {
        low = row.y > 0 ? min(low, row.x) : low;
        high = max(high, row.y);
        all_low = max(all_low, row.x);
        all_high = min(all_high, row.y);
    }
    __device__ __forceinline__ bool misses(int64_t first, int64_t last) const { return high <= first || low >= last; }
    __device__ __forceinline__ bool covers(int64_t first, int64_t last) const {
        return all_low <= first && last <= all_high;
    }
};

__device__ __forceinline__ Seen nothing_seen() {
    return {INT32_MAX, 0, 0, INT32_MAX};
}

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
    Seen * any;       // [n_padded / kStream]
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

__global__ void look_over(Task t) {
    const int64_t group = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (group * kStream < t.n_padded) {
        Seen any = nothing_seen();
        for (int i = 0; i < kStream; ++i) {
            any.add(t.seen[group * kStream + i]);
        }
        t.any[group] = any;
    }
}

// Starts copying rows [first, first + n) of a matrix [n_all, D] to shared memory [n, D + 8]. Those beyond it repeat the
// last one: nothing sees them.
template <int D>
__device__ __forceinline__ void copy_tile(__half * tile, const __half * from, int64_t first, int64_t n_all, int n) {
    constexpr int kChunks = D / 8;
    for (int i = threadIdx.x; i < n * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        copy_async(shared_address(tile + row * (D + 8) + chunk * 8),
                   from + min(first + row, n_all - 1) * D + chunk * 8);
    }
}

// c: dot products of a warp's own rows with those that pass by. Lane l has of own rows l / 4 and + 8, 16 and 24, of the
// others of each piece 2 (l % 4) and + 1.
using Products = float[2][kPieces][4];

template <int D>
__device__ __forceinline__ void multiply(const __half * own, const __half * others, Products & c) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 2 * kPieces * 4; ++i) {
        c[i / (kPieces * 4)][i / 4 % kPieces][i % 4] = 0;
    }
#pragma unroll 4
    for (int k = 0; k < D; k += 16) {
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            load_matrices(a[m], own + (m * 16 + lane % 16) * (D + 8) + k + lane / 16 * 8);
        }
#pragma unroll
        for (int i = 0; i < kPieces; i += 2) {
            uint32_t b[4];
            load_matrices(b, others + (i * 8 + lane / 16 * 8 + lane % 8) * (D + 8) + k + lane / 8 % 2 * 8);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                mma_f16(c[m][i], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                mma_f16(c[m][i + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
            }
        }
    }
}

// Own rows [kOwn, D + 8], then twice those that pass by.
template <int D>
struct Tiles {
    static constexpr int kBytes = (kOwn + 2 * kStream) * (D + 8) * int(sizeof(__half));
    __half * own;

    __device__ __forceinline__ __half * warps_own() const { return own + threadIdx.x / 32 * kWarpOwn * (D + 8); }
    __device__ __forceinline__ __half * passing(int i) const { return own + (kOwn + i % 2 * kStream) * (D + 8); }

    // Calls body(tile, others) for tiles [from, to) of a matrix, while the next one is on its way. The own rows are
    // too.
    template <class Body>
    __device__ __forceinline__ void stream(const __half * others, int64_t n_all, int from, int to, Body && body) const {
        if (from < to) {
            copy_tile<D>(passing(from), others, int64_t(from) * kStream, n_all, kStream);
        }
        commit_copies();
        for (int tile = from; tile < to; ++tile) {
            if (tile + 1 < to) {
                copy_tile<D>(passing(tile + 1), others, int64_t(tile + 1) * kStream, n_all, kStream);
            }
            commit_copies();
            wait_copies<1>();
            __syncthreads();
            body(tile, passing(tile));
            __syncthreads();
        }
    }
};

// First pass. grid [n_padded / kOwn, n_kv_heads, n_parts]. Few rows over many tokens would leave most of the device
// idle, so the tokens are parted.
template <int D>
__global__ void __launch_bounds__(kThreads, D > 128 ? 1 : 2) sum_rows(Task t) {
    extern __shared__ __align__(16) __half memory[];
    const Tiles<D> tiles = {memory};
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t first_row = int64_t(blockIdx.x) * kOwn;
    copy_tile<D>(tiles.own, t.q + head * t.n_padded * D, first_row, t.n_padded, kOwn);
    Seen any = nothing_seen(), warps = nothing_seen();
    for (int i = 0; i < kOwn / kStream; ++i) {
        const Seen & other = t.any[first_row / kStream + i];
        any.low = min(any.low, other.low);
        any.high = max(any.high, other.high);
    }
    const int row = warp * kWarpOwn + lane / 4;
    for (int i = 0; i < kWarpOwn; ++i) {
        warps.add(t.seen[first_row + warp * kWarpOwn + i]);
    }
    int2 seen[4];
    float maximum[4], sum[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        seen[i] = t.seen[first_row + row + 8 * i];
        maximum[i] = -INFINITY;
        sum[i] = 0;
    }
    const float scale = t.p.scale * kLog2e;
    const auto * keys = reinterpret_cast<const __half *>(t.p.k) + head * t.p.k_stride * D;
    const int begin = any.high > 0 ? any.low / kStream : 0;
    const int n_tiles = (any.high + kStream - 1) / kStream - begin;
    const int from = begin + int(int64_t(n_tiles) * blockIdx.z / gridDim.z);
    const int to = begin + int(int64_t(n_tiles) * (blockIdx.z + 1) / gridDim.z);
    tiles.stream(keys, t.p.n_tokens, from, to, [&](int tile, const __half * tokens) {
        const int token = tile * kStream;
        if (warps.misses(token, token + kStream)) {
            return;
        }
        Products c;
        multiply<D>(tiles.warps_own(), tokens, c);
        if (!warps.covers(token, token + kStream)) {
#pragma unroll
            for (int i = 0; i < 4 * 2 * kPieces; ++i) {
                const int slot = i / (2 * kPieces), at = token + i / 2 % kPieces * 8 + lane % 4 * 2 + i % 2;
                float & logit = c[slot / 2][i / 2 % kPieces][slot % 2 * 2 + i % 2];
                logit = at >= seen[slot].x && at < seen[slot].y ? logit : -INFINITY;
            }
        }
#pragma unroll
        for (int slot = 0; slot < 4; ++slot) {
            float most = -INFINITY;
#pragma unroll
            for (int i = 0; i < 2 * kPieces; ++i) {
                most = fmaxf(most, c[slot / 2][i / 2][slot % 2 * 2 + i % 2]);
            }
            most = fmaxf(maximum[slot], most * scale);
            if (most > -INFINITY) {
                sum[slot] *= exp2_fast(maximum[slot] - most);
                maximum[slot] = most;
#pragma unroll
                for (int i = 0; i < 2 * kPieces; ++i) {
                    sum[slot] += exp2_fast(fmaf(c[slot / 2][i / 2][slot % 2 * 2 + i % 2], scale, -most));
                }
            }
        }
    });
#pragma unroll
    for (int slot = 0; slot < 4; ++slot) {
        const float top = quad_max(maximum[slot]);
        const float total = quad_sum(top > -INFINITY ? sum[slot] * exp2_fast(maximum[slot] - top) : 0.0f);
        if (lane % 4 == 0) {
            const int64_t at = (int64_t(blockIdx.z) * gridDim.y + head) * t.n_padded + first_row + row + slot * 8;
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

// Second pass. grid [tokens / kOwn, n_kv_heads].
template <int D>
__global__ void __launch_bounds__(kThreads, D > 128 ? 1 : 2) sum_columns(Task t) {
    extern __shared__ __align__(16) __half memory[];
    __shared__ int from, to;
    const Tiles<D> tiles = {memory};
    const int head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t first_token = int64_t(blockIdx.x) * kOwn, warps_first = first_token + warp * kWarpOwn;
    copy_tile<D>(tiles.own, reinterpret_cast<const __half *>(t.p.k) + head * t.p.k_stride * D, first_token,
                 t.p.n_tokens, kOwn);
    const int n_groups = int(t.n_padded / kStream);
    if (threadIdx.x == 0) {
        from = n_groups;
        to = 0;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < n_groups; i += kThreads) {
        if (!t.any[i].misses(first_token, first_token + kOwn)) {
            atomicMin(&from, i);
            atomicMax(&to, i + 1);
        }
    }
    __syncthreads();
    const float scale = t.p.scale * kLog2e;
    float score[4] = {}, square[4] = {};
    tiles.stream(t.q + head * t.n_padded * D, t.n_padded, from, to, [&](int tile, const __half * queries) {
        const Seen any = t.any[tile];
        if (any.misses(warps_first, warps_first + kWarpOwn)) {
            return;
        }
        Products c;
        multiply<D>(tiles.warps_own(), queries, c);
        const bool all = any.covers(warps_first, warps_first + kWarpOwn);
        const int64_t first_row = int64_t(tile) * kStream + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const int64_t row = first_row + i * 8;
            const float2 pair = *reinterpret_cast<const float2 *>(t.log_sum + head * t.n_padded + row);
            const int4 saw = all ? int4{0, INT32_MAX, 0, INT32_MAX} : *reinterpret_cast<const int4 *>(t.seen + row);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                const int slot = j / 2;
                const int64_t at = warps_first + lane / 4 + slot * 8;
                const bool seen = j % 2 == 0 ? at >= saw.x && at < saw.y : at >= saw.z && at < saw.w;
                const float logit = c[slot / 2][i][slot % 2 * 2 + j % 2], log_sum = j % 2 == 0 ? pair.x : pair.y;
                const float p = seen ? exp2_fast(fmaf(logit, scale, -log_sum)) : 0.0f;
                score[slot] += p;
                square[slot] = fmaf(p, p, square[slot]);
            }
        }
    });
#pragma unroll
    for (int slot = 0; slot < 4; ++slot) {
        const int64_t token = warps_first + lane / 4 + slot * 8, at = head * t.p.n_tokens + token;
        const float whole = quad_sum(score[slot]), squares = quad_sum(square[slot]);
        if (lane % 4 == 0 && token < t.p.n_tokens) {
            t.score[at] += whole;
            t.square[at] += squares;
        }
    }
}

struct Sizes {
    int64_t n_padded, log_sum, part, seen, any, size;
    int n_parts;
};

// Enough of them to fill the device.
int parts_for(int64_t n_blocks, int64_t n_tokens) {
    constexpr int64_t kBlocksEach = 8, kLeastTokens = 2048;
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
    s.any = s.seen + s.n_padded * int64_t(sizeof(int2));
    s.size = s.any + s.n_padded / kStream * int64_t(sizeof(Seen));
    return s;
}

template <int D>
const char * launch(const Task & t, int n_parts, cudaStream_t stream) {
    constexpr int kShared = Tiles<D>::kBytes;
    cudaFuncSetAttribute(sum_rows<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    cudaFuncSetAttribute(sum_columns<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
    prepare<<<dim3(unsigned(t.n_padded), t.p.n_kv_heads), std::min(D, 128), 0, stream>>>(t);
    look_over<<<unsigned((t.n_padded / kStream + kThreads - 1) / kThreads), kThreads, 0, stream>>>(t);
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
                       reinterpret_cast<int2 *>(work + sizes.seen),
                       reinterpret_cast<Seen *>(work + sizes.any)};
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

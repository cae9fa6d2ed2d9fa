// Codes to rows. Compiled without fused multiply-adds, as quantize_kv_cuda.cu.
#include <cuda_fp16.h>

#include "cuda/launch.h"
#include "cuda/places.cuh"
#include "cuda/row.cuh"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;

struct Task {
    ggml_zipcache_format f;
    uint8_t * segment;  // only read
    int64_t n_tokens, max_places;
    uint32_t * counts;  // [n_orders, n_tiers]
    uint32_t * token;   // [n_orders, max_places]

    __device__ SegmentLayout layout() const {
        return segment_layout(f, n_tokens, reinterpret_cast<const format::SegmentHeader *>(segment)->n_places);
    }
    __device__ const uint32_t * table(const SegmentLayout & l, int head) const {
        return reinterpret_cast<const uint32_t *>(segment + l.heads + head * l.head_bytes);
    }
    __device__ const uint32_t * tokens(int head) const { return token + (f.same_order ? 0 : head) * max_places; }
};

__global__ void order_tokens(Task t) {
    const TierTags tags = {t.segment + t.layout().tags, format::tag_bytes(t.f, t.n_tokens), format::tag_bits(t.f)};
    find_places(t.f, tags, t.n_tokens, t.max_places, t.counts, t.token);
}

// The four codes of a register, a byte each: register `reg` of a lane of 16 places, of all planes.
__device__ uint32_t codes_of(const uint8_t * codes, const format::Planes & planes, int step, int reg, int lane,
                             int n_places, int dim) {
    uint32_t all = 0;
    for (int p = 0, low = 0; p < planes.n; low += planes.width[p++]) {
        const int width = planes.width[p];
        const format::Spot spot = word_spot(step, reg, lane, 0, dim, width);
        const uint32_t word = *reinterpret_cast<const uint32_t *>(codes + spot.byte);
        all |= (word >> spot.shift & 0x01010101u * ((1u << width) - 1)) << low;
        codes += plane_bytes(n_places, dim, width);
    }
    return all;
}

// Parameters of a block's channels or tokens, in the order of its entries, in shared memory: each serves many codes.
__device__ void read_params(const SidePlace & side, const ParamReader & params, Value * values) {
    for (int i = threadIdx.x; i < side.n; i += blockDim.x) {
        values[i] = params.at(i);
    }
}

// A block's rows before they are turned back, x [n_places, D + 1]. A warp takes a register of all lanes at a time.
template <int D>
__device__ void decode_block(const FoundBlock & b, const SidePlace & side, const Value * values, bool key, float * x) {
    constexpr int kRegs = D / 8;
    const int bits = side.how.bits[b.tier], lane = threadIdx.x % kLanes, stride = D + 1;
    const format::Planes planes = cuda_planes(bits);
    const int n = b.n_places / kStep * kRegs;
    for (int i = threadIdx.x / kLanes; i < n; i += blockDim.x / kLanes) {
        const int step = i / kRegs, reg = i % kRegs;
        const uint32_t codes = bits > 0 ? codes_of(side.codes, planes, step, reg, lane, b.n_places, D) : 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int place = step * kStep + (key ? reg / (D / 16) * 8 + lane / 4 : j / 2 * 8 + lane % 4 * 2 + j % 2);
            const int channel = key ? reg % (D / 16) * 16 + lane % 4 * 4 + j : reg * 8 + lane / 4;
            float value = 0;
            if (bits > 0 && place < b.n) {
                const Value v = values[side.entry(place, channel, b.n_places, D)];
                value = v.scale * float(codes >> 8 * j & 255u) + v.min;
            }
            x[place * stride + channel] = value;
        }
    }
}

// grid [max_blocks, n_kv_heads, 2 sides]
template <int D>
__global__ void decode(Task t, ggml_zipcache_cuda_rows_out rows) {
    constexpr int kStride = D + 1,
                  kMostEntries = format::kGroup * (D / 32 > 1 ? D / 32 : 1) > D ? format::kGroup * (D / 32) : D;
    extern __shared__ float x[];  // [n_places, D + 1]
    __shared__ Value values[kMostEntries];
    const int head = blockIdx.y, lane = threadIdx.x % kLanes;
    const bool key = blockIdx.z == 0;
    const SegmentLayout l = t.layout();
    const uint32_t * table = t.table(l, head);
    const FoundBlock b = find_block(t.f, table, blockIdx.x);
    if (!b.exists) {
        return;
    }
    const SidePlace side(t.f, l, t.segment, head, b, table[t.f.n_tiers + b.tier], key);
    const auto & units = *reinterpret_cast<const format::HeadUnits *>(table + 2 * t.f.n_tiers);
    const ParamReader params(side.how, b.tier, side.params, side.n, key ? units.k_range : units.v_range,
                             key ? units.k_mid : units.v_mid);
    if (side.how.bits[b.tier] > 0) {
        read_params(side, params, values);
    }
    __syncthreads();
    decode_block<D>(b, side, values, key, x);
    const float * divisor = key ? rows.k_divisor : rows.v_divisor;
    Row<D> scale;
#pragma unroll
    for (int i = 0; i * kLanes < D; ++i) {
        const int c = i * kLanes + lane;
        scale[i] = divisor && c < D ? divisor[head * D + c] : 1.0f;
    }
    auto * to = reinterpret_cast<__half *>(key ? rows.k : rows.v) + head * rows.stride * D;
    const uint32_t * token = t.tokens(head) + b.place;
    __syncthreads();
    for (int place = threadIdx.x / kLanes; place < b.n; place += blockDim.x / kLanes) {
        Row<D> row;
#pragma unroll
        for (int i = 0; i * kLanes < D; ++i) {
            const int c = i * kLanes + lane;
            row[i] = c < D ? x[place * kStride + c] : 0.0f;
        }
        if (side.how.rotate) {
            warp_hadamard<D>(row, lane);
        }
        const int64_t at = token[place];
#pragma unroll
        for (int i = 0; i * kLanes < D; ++i) {
            const int c = i * kLanes + lane;
            if (c < D) {
                to[at * D + c] = __float2half_rn(row[i] * scale[i]);
            }
        }
        if (rows.kept && key && lane == 0) {
            rows.kept[head * t.n_tokens + at] = 1;
        }
    }
}

template <int D>
void launch_decode(const Task & task, const ggml_zipcache_cuda_rows_out & rows, cudaStream_t stream) {
    const int shared = format::kGroup * (D + 1) * int(sizeof(float));
    cudaFuncSetAttribute(decode<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    const dim3 blocks(unsigned(ggml_zipcache_cuda_max_blocks(&task.f, task.n_tokens)), task.f.n_kv_heads, 2);
    decode<D><<<blocks, kThreads, shared, stream>>>(task, rows);
}

__global__ void positions(Task t, uint16_t * position) {
    const int64_t place = blockIdx.x * int64_t(kThreads) + threadIdx.x;
    if (place < t.max_places) {
        position[blockIdx.y * t.max_places + place] = uint16_t(t.tokens(blockIdx.y)[place]);  // kNoToken: UINT16_MAX
    }
}

size_t workspace_of(const ggml_zipcache_format & f, int64_t n_tokens) {
    return align(format::n_orders(f) * f.n_tiers * int64_t(sizeof(uint32_t))) +
           format::n_orders(f) * ggml_zipcache_cuda_max_places(&f, n_tokens) * int64_t(sizeof(uint32_t));
}

Task task_of(const ggml_zipcache_format & f, const uint8_t * segment, int64_t n_tokens, void * workspace) {
    auto * work = static_cast<uint8_t *>(workspace);
    return {f,
            const_cast<uint8_t *>(segment),
            n_tokens,
            ggml_zipcache_cuda_max_places(&f, n_tokens),
            reinterpret_cast<uint32_t *>(work),
            reinterpret_cast<uint32_t *>(work + align(format::n_orders(f) * f.n_tiers * int64_t(sizeof(uint32_t))))};
}

void find_order(const Task & task, void * workspace, cudaStream_t stream) {
    cudaMemsetAsync(workspace, 0xFF, workspace_of(task.f, task.n_tokens), stream);
    order_tokens<<<format::n_orders(task.f), kOrderThreads, 0, stream>>>(task);
}

const char * input_error(const ggml_zipcache_format & f, int64_t n_tokens, size_t workspace_bytes) {
    if (const char * error = ggml_zipcache_cuda_format_error(&f)) {
        return error;
    }
    if (n_tokens < 1) {
        return "dequantize_kv got no tokens; accepted: from 1";
    }
    return workspace_bytes < workspace_of(f, n_tokens) ? "dequantize_kv got a workspace that is too small; accepted: "
                                                         "ggml_zipcache_cuda_dequantize_kv_workspace()"
                                                       : nullptr;
}

}  // namespace
}  // namespace zipcache::cuda

size_t ggml_zipcache_cuda_dequantize_kv_workspace(const ggml_zipcache_format * format, int64_t n_tokens) {
    return zipcache::cuda::workspace_of(*format, n_tokens);
}

const char * ggml_zipcache_cuda_dequantize_kv(const ggml_zipcache_format * format, const uint8_t * segment,
                                              const ggml_zipcache_cuda_rows_out * rows, void * workspace,
                                              size_t workspace_bytes, void * stream) {
    using namespace zipcache::cuda;
    const auto & f = *format;
    if (const char * error = input_error(f, rows->n_tokens, workspace_bytes)) {
        return error;
    }
    const auto at = static_cast<cudaStream_t>(stream);
    const Task task = task_of(f, segment, rows->n_tokens, workspace);
    find_order(task, workspace, at);
    if (ggml_zipcache_evicts(&f)) {
        const size_t pitch = size_t(rows->stride) * f.head_dim * 2, width = size_t(rows->n_tokens) * f.head_dim * 2;
        cudaMemset2DAsync(rows->k, pitch, 0, width, f.n_kv_heads, at);
        cudaMemset2DAsync(rows->v, pitch, 0, width, f.n_kv_heads, at);
    }
    if (rows->kept) {
        cudaMemsetAsync(rows->kept, 0, f.n_kv_heads * rows->n_tokens, at);
    }
    switch (f.head_dim) {  // those that format_error lets pass
        case 64: launch_decode<64>(task, *rows, at); break;
        case 80: launch_decode<80>(task, *rows, at); break;
        case 96: launch_decode<96>(task, *rows, at); break;
        case 128: launch_decode<128>(task, *rows, at); break;
        default: launch_decode<256>(task, *rows, at); break;
    }
    return launch_error();
}

const char * ggml_zipcache_cuda_positions(const ggml_zipcache_format * format, const uint8_t * segment,
                                          int64_t n_tokens, uint16_t * position, void * workspace,
                                          size_t workspace_bytes, void * stream) {
    using namespace zipcache::cuda;
    if (const char * error = input_error(*format, n_tokens, workspace_bytes)) {
        return error;
    }
    if (n_tokens > 65535) {
        return "positions got too many tokens; accepted: up to 65535";
    }
    const auto at = static_cast<cudaStream_t>(stream);
    const Task task = task_of(*format, segment, n_tokens, workspace);
    find_order(task, workspace, at);
    const dim3 grid(unsigned((task.max_places + kThreads - 1) / kThreads), format->n_kv_heads);
    positions<<<grid, kThreads, 0, at>>>(task, position);
    return launch_error();
}

// Rows to codes, as quantize_kv.cpp does it: the same parameters, the same codes. Compiled without fused multiply-adds,
// which the portable code has none of.
#include <cuda_fp16.h>

#include "cuda/launch.h"
#include "cuda/places.cuh"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;

struct Range {
    float min = INFINITY, max = -INFINITY;

    __device__ void take(float x) {
        min = fminf(min, x);
        max = fmaxf(max, x);
    }
    __device__ bool empty() const { return min > max; }
};

// A range that many blocks of threads widen: floats as integers of the same order. Zeros mean empty.
struct SharedRange {
    uint32_t below, above;  // of -min and of max

    static __device__ uint32_t ordered(float x) {
        const uint32_t bits = __float_as_uint(x);
        return bits >> 31 ? ~bits : bits | 0x80000000u;
    }
    static __device__ float back(uint32_t u) { return __uint_as_float(u >> 31 ? u & 0x7FFFFFFFu : ~u); }
    __device__ void take(const Range & r) {
        if (!r.empty()) {
            atomicMax(&below, ordered(-r.min));
            atomicMax(&above, ordered(r.max));
        }
    }
    __device__ Range get() const { return above == 0 ? Range{} : Range{-back(below), back(above)}; }
};

// What the units of 8-bit parameters must reach, as bits of floats that are not negative.
struct Widest {
    uint32_t width, middle;
};

// Workspace, all zeros at first but `token`.
struct Work {
    uint32_t * counts;     // [n_orders, n_tiers]
    uint32_t * token;      // [n_orders, max_places]
    Widest * widest;       // [2 sides, n_kv_heads]
    SharedRange * whole;   // [2 sides, n_kv_heads, n_tiers, head_dim]: scope segment
    SharedRange * shared;  // [2 sides, max_places]: tokens over all heads
    int64_t max_places, max_blocks;
};

struct Sizes {
    int64_t counts, widest, whole, shared, token, size;
};

Sizes sizes_of(const ggml_zipcache_format & f, int64_t n_tokens) {
    const int64_t places = ggml_zipcache_cuda_max_places(&f, n_tokens);
    Sizes s = {};
    s.widest = align(format::n_orders(f) * f.n_tiers * int64_t(sizeof(uint32_t)));
    s.whole = align(s.widest + 2 * f.n_kv_heads * int64_t(sizeof(Widest)));
    s.shared = align(s.whole + 2 * int64_t(f.n_kv_heads) * f.n_tiers * f.head_dim * int64_t(sizeof(SharedRange)));
    s.token = align(s.shared + 2 * places * int64_t(sizeof(SharedRange)));
    s.size = s.token + format::n_orders(f) * places * int64_t(sizeof(uint32_t));
    return s;
}

struct Task {
    ggml_zipcache_format f;
    ggml_zipcache_rows rows;
    uint8_t * to;
    int64_t capacity;
    Work work;

    __device__ const uint32_t * counts(int head) const { return work.counts + (f.same_order ? 0 : head) * f.n_tiers; }
    __device__ const uint32_t * tokens(int head) const {
        return work.token + (f.same_order ? 0 : head) * work.max_places;
    }
    __device__ const format::SegmentHeader & header() const {
        return *reinterpret_cast<const format::SegmentHeader *>(to);
    }
    __device__ SegmentLayout layout() const { return segment_layout(f, rows.n_tokens, header().n_places); }
    __device__ uint32_t * table(const SegmentLayout & l, int head) const {
        return reinterpret_cast<uint32_t *>(to + l.heads + head * l.head_bytes);
    }
    __device__ format::HeadUnits & units(const SegmentLayout & l, int head) const {
        return *reinterpret_cast<format::HeadUnits *>(table(l, head) + 2 * f.n_tiers);
    }
    __device__ Widest & widest(bool key, int head) const { return work.widest[(key ? 0 : f.n_kv_heads) + head]; }
    __device__ SharedRange * whole(bool key, int head, int set) const {
        return work.whole + (((key ? 0 : f.n_kv_heads) + head) * int64_t(f.n_tiers) + set) * f.head_dim;
    }
    __device__ SharedRange * shared(bool key) const { return work.shared + (key ? 0 : work.max_places); }
};

__global__ void order_tokens(Task t) {
    find_places(t.f, TierArray{t.rows.tier, t.rows.n_tokens}, t.rows.n_tokens, t.work.max_places, t.work.counts,
                t.work.token);
}

// What a head's tokens of a tier take, in shared memory.
struct TierSize {
    uint32_t count, places, bytes;
};

// Header and tables, by one block of threads.
__global__ void write_tables(Task t) {
    extern __shared__ TierSize sizes[];  // [n_kv_heads, n_tiers]
    const auto & f = t.f;
    const int n = f.n_kv_heads * f.n_tiers;
    for (int i = threadIdx.x; i < n; i += kThreads) {
        const uint32_t count = t.counts(i / f.n_tiers)[i % f.n_tiers];
        sizes[i] = {count, uint32_t(cuda_tier_places(f, i % f.n_tiers, count)),
                    uint32_t(cuda_tier_bytes(f, i % f.n_tiers, count))};
    }
    __syncthreads();
    uint32_t n_places = 0;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        uint32_t places = 0;
        for (int i = 0; i < f.n_tiers; ++i) {
            places += sizes[head * f.n_tiers + i].places;
        }
        n_places = max(n_places, places);
    }
    const SegmentLayout l = segment_layout(f, t.rows.n_tokens, n_places);
    int64_t n_bytes = l.blocks;
    for (int i = 0; i < n; ++i) {
        if (threadIdx.x == i % kThreads && l.blocks <= t.capacity) {
            uint32_t * table = t.table(l, i / f.n_tiers) + i % f.n_tiers;
            table[0] = sizes[i].count;
            table[f.n_tiers] = uint32_t(n_bytes);
        }
        n_bytes += sizes[i].bytes;
    }
    if (threadIdx.x == 0) {
        *reinterpret_cast<format::SegmentHeader *>(t.to) = {
            n_bytes <= t.capacity ? kCudaMagic : 0u, uint32_t(t.rows.n_tokens), uint32_t(n_bytes), uint32_t(n_places)};
    }
}

__global__ void write_tags(Task t) {
    const int bits = format::tag_bits(t.f);
    const int64_t n = t.rows.n_tokens, n_bytes = format::tag_bytes(t.f, n);
    const int64_t at = blockIdx.x * int64_t(kThreads) + threadIdx.x;
    if (t.header().magic == 0 || bits == 0 || at >= format::n_orders(t.f) * n_bytes) {
        return;
    }
    const int64_t order = at / n_bytes;
    uint32_t byte = 0;
    for (int i = 0; i < 8 / bits; ++i) {
        const int64_t token = at % n_bytes * (8 / bits) + i;
        byte |= token < n ? uint32_t(t.rows.tier[order * n + token]) << (i * bits) : 0u;
    }
    t.to[t.layout().tags + at] = uint8_t(byte);
}

// ---- Parameters ----

__device__ uint32_t half_bits(float x) {
    return __half_as_ushort(__float2half_rn(x));
}

__device__ void write_pair(const Range & r, int bits, uint8_t * to) {
    uint32_t pair = 0;
    if (!r.empty() && bits > 0) {
        const uint32_t low = half_bits(r.min);
        const float width = fmaxf(0.0f, r.max - __half2float(__ushort_as_half(uint16_t(low))));
        pair = half_bits(width / format::levels(bits)) | low << 16;
    }
    *reinterpret_cast<uint32_t *>(to) = pair;
}

__device__ void write_scale(const Range & r, int bits, uint8_t * to) {
    const float extreme = r.empty() ? 0.0f : (-r.min > r.max ? r.min : r.max);
    const float scale = bits == 8 ? fabsf(extreme) / 127 : bits > 0 ? extreme / -float(1 << (bits - 1)) : 0.0f;
    *reinterpret_cast<uint16_t *>(to) = uint16_t(half_bits(scale));
}

__device__ uint8_t covering_range(float x) {
    const uint32_t bits = __float_as_uint(x + 1);
    return uint8_t(min(((bits + (1u << 19) - 1) >> 19) - (127u << 4), 255u));
}

__device__ float middle_of(const Range & r, float mid_unit) {
    const float unit = mid_unit > 0 ? mid_unit : (r.max - r.min) / 256;
    return unit > 0 ? fminf(fmaxf(roundf((r.min + r.max) / 2 / unit), -127.0f), 127.0f) : 0.0f;
}

__device__ float covered(const Range & r, float middle, float mid_unit) {
    if (mid_unit > 0) {
        return 2 * fmaxf(r.max - middle * mid_unit, middle * mid_unit - r.min);
    }
    const float m = middle / 256;
    return fmaxf(fmaxf(0.0f, r.max / (0.5f + m)), -r.min / (0.5f - m));
}

// Entry `at` of n.
__device__ void write_param(int kind, const Range & r, int64_t at, int64_t n, int bits, float range_unit,
                            float mid_unit, uint8_t * to) {
    if (kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
        write_pair(r, bits, to + at * 4);
    } else if (kind == GGML_ZIPCACHE_PARAMS_F16_SCALE) {
        write_scale(r, bits, to + at * 2);
    } else if (kind == GGML_ZIPCACHE_PARAMS_F8_SCALE) {
        const float width = r.empty() ? 0.0f : 2 * fmaxf(fabsf(r.min), fabsf(r.max));
        to[at] = range_unit > 0 ? covering_range(width / range_unit) : 0;
    } else {
        const float m = r.empty() ? 0.0f : middle_of(r, mid_unit);
        to[at] = range_unit > 0 && !r.empty() ? covering_range(covered(r, m, mid_unit) / range_unit) : 0;
        to[n + at] = uint8_t(int8_t(m));
    }
}

__device__ void widen(const Range & r, const ggml_zipcache_side & side, Widest & widest) {
    if (r.empty() || side.params < GGML_ZIPCACHE_PARAMS_F8_PAIR) {
        return;
    }
    float width = r.max - r.min, middle = 0;
    if (side.params == GGML_ZIPCACHE_PARAMS_F8_SCALE) {
        width = 2 * fmaxf(fabsf(r.min), fabsf(r.max));
    } else if (side.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
        width = covered(r, middle_of(r, 0), 0);
    } else {
        middle = fabsf(r.min + r.max) / 2;
    }
    atomicMax(&widest.width, __float_as_uint(width));
    atomicMax(&widest.middle, __float_as_uint(middle));
}

// ---- Rows ----

// A block's transformed rows, in shared memory.
struct BlockRows {
    float * x;  // [n_places, stride]; padding holds zeros
    int stride;
};

__device__ void load_rows(const Task & t, const FoundBlock & b, int head, bool key, const BlockRows & rows) {
    const int dim = t.f.head_dim;
    const auto & how = key ? t.f.k : t.f.v;
    const float * divisor = key ? t.rows.k_divisor : t.rows.v_divisor;
    const auto * from = reinterpret_cast<const __half *>(key ? t.rows.k : t.rows.v) + head * t.rows.stride * dim;
    const uint32_t * token = t.tokens(head) + b.place;
    for (int i = threadIdx.x; i < b.n_places * dim; i += blockDim.x) {
        const int place = i / dim, c = i % dim;
        const float inverse = divisor ? 1.0f / divisor[head * dim + c] : 1.0f;
        rows.x[place * rows.stride + c] =
            place < b.n ? __half2float(from[int64_t(token[place]) * dim + c]) * inverse : 0;
    }
    __syncthreads();
    if (how.rotate) {
        rotate_rows(rows.x, b.n, rows.stride, dim);
        __syncthreads();
    }
}

// Range of a channel over a block, or of some channels of a place.
__device__ Range channel_range(const BlockRows & rows, int n, int channel) {
    Range r;
    for (int place = 0; place < n; ++place) {
        r.take(rows.x[place * rows.stride + channel]);
    }
    return r;
}

__device__ Range token_range(const BlockRows & rows, int place, int first, int n) {
    Range r;
    for (int c = first; c < first + n; ++c) {
        r.take(rows.x[place * rows.stride + c]);
    }
    return r;
}

// First pass: what goes beyond a block. grid [max_blocks, n_kv_heads, 2 sides]
__global__ void measure(Task t) {
    extern __shared__ float x[];
    const int head = blockIdx.y;
    const bool key = blockIdx.z == 0;
    const auto & how = key ? t.f.k : t.f.v;
    const bool f8 = how.params >= GGML_ZIPCACHE_PARAMS_F8_PAIR, spans = format::spans_heads(t.f, how);
    const FoundBlock b = find_block(t.f, t.counts(head), blockIdx.x);
    const bool needed = f8 || spans || how.scope == GGML_ZIPCACHE_SCOPE_SEGMENT;
    if (!b.exists || !needed || t.header().magic == 0) {
        return;
    }
    const int dim = t.f.head_dim;
    const BlockRows rows = {x, dim + 1};
    load_rows(t, b, head, key, rows);
    if (how.scope != GGML_ZIPCACHE_SCOPE_TOKEN) {
        const int set = format::segment_sets(t.f, how) > 1 ? b.tier : 0;
        for (int c = threadIdx.x; c < dim; c += blockDim.x) {
            const Range r = channel_range(rows, b.n, c);
            if (how.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
                t.whole(key, head, set)[c].take(r);
            } else {
                widen(r, how, t.widest(key, head));
            }
        }
        return;
    }
    const int block = min(how.block, dim), n_sets = dim / block;
    for (int i = threadIdx.x; i < b.n * n_sets; i += blockDim.x) {
        const int place = i % b.n;
        const Range r = token_range(rows, place, i / b.n * block, block);
        if (spans) {
            t.shared(key)[b.place + place_index(place, b.n_places)].take(r);
        } else {
            widen(r, how, t.widest(key, head));
        }
    }
}

// Units of a head and its parameters of scope segment. grid [n_kv_heads, 2 sides]
__global__ void write_head(Task t) {
    const int head = blockIdx.x, dim = t.f.head_dim;
    const bool key = blockIdx.y == 0;
    const auto & how = key ? t.f.k : t.f.v;
    if (t.header().magic == 0) {
        return;
    }
    const bool f8 = how.params >= GGML_ZIPCACHE_PARAMS_F8_PAIR;
    Widest & widest = t.widest(key, head);
    const int n_sets = format::segment_sets(t.f, how);
    for (int i = threadIdx.x; i < n_sets * dim; i += blockDim.x) {
        widen(t.whole(key, head, i / dim)[i % dim].get(), how, widest);
    }
    __syncthreads();
    const float width = __uint_as_float(__ldcg(&widest.width));
    const float mid = __uint_as_float(__ldcg(&widest.middle)) / 127;
    const float range_unit = f8 ? (width + mid) / format::kTopRange : 0;
    const float mid_unit = f8 && how.scope != GGML_ZIPCACHE_SCOPE_TOKEN ? mid : 0;
    const SegmentLayout l = t.layout();
    if (threadIdx.x == 0) {
        format::HeadUnits & units = t.units(l, head);
        (key ? units.k_range : units.v_range) = range_unit;
        (key ? units.k_mid : units.v_mid) = mid_unit;
    }
    uint8_t * to = t.to + (key ? l.k_params : l.v_params) + head * format::segment_param_bytes(t.f, how);
    for (int i = threadIdx.x; i < n_sets * dim; i += blockDim.x) {
        const int set = i / dim;
        write_param(how.params, t.whole(key, head, set)[i % dim].get(), channel_index(i % dim, dim), dim, how.bits[set],
                    range_unit, mid_unit, to + int64_t(set) * dim * format::entry_bytes(how.params));
    }
}

// Tokens' pairs for all heads. grid: blocks of head 0, whose order all heads share
__global__ void write_shared(Task t) {
    if (t.header().magic == 0) {
        return;
    }
    const SegmentLayout l = t.layout();
    const FoundBlock b = find_block(t.f, t.counts(0), blockIdx.x);
    for (int side = 0; side < 2; ++side) {
        const bool key = side == 0;
        const auto & how = key ? t.f.k : t.f.v;
        for (int i = threadIdx.x; format::spans_heads(t.f, how) && b.exists && i < b.n_places; i += blockDim.x) {
            write_pair(t.shared(key)[b.place + i].get(), how.bits[b.tier],
                       t.to + (key ? l.k_shared : l.v_shared) + (b.place + i) * int64_t(sizeof(format::Pair)));
        }
    }
}

// A block's own parameters.
__device__ void write_block_params(const BlockRows & rows, const FoundBlock & b, const SidePlace & side, int dim,
                                   float range_unit, float mid_unit) {
    const auto & how = side.how;
    const int bits = how.bits[b.tier];
    if (how.scope == GGML_ZIPCACHE_SCOPE_GROUP) {
        for (int c = threadIdx.x; c < dim; c += blockDim.x) {
            write_param(how.params, channel_range(rows, b.n, c), channel_index(c, dim), side.n, bits, range_unit,
                        mid_unit, side.params);
        }
        return;
    }
    for (int i = threadIdx.x; i < dim / how.block * b.n_places; i += blockDim.x) {
        const int place = i % b.n_places, set = i / b.n_places;
        if (place >= format::tile_places(b.n)) {
            continue;  // a place that the CPU's order has not
        }
        const Range r = place < b.n ? token_range(rows, place, set * how.block, how.block) : Range{};
        write_param(how.params, r, set * b.n_places + place_index(place, b.n_places), side.n, bits, range_unit, 0,
                    side.params);
    }
}

// Codes of one side of a block from shared memory, [n_places, dim], word by word.
__device__ void pack_codes(const uint8_t * codes, const FoundBlock & b, int dim, int bits, bool key, uint8_t * to) {
    const format::Planes planes = cuda_planes(bits);
    for (int p = 0, low = 0; p < planes.n; low += planes.width[p++]) {
        const int width = planes.width[p], words = lane_words(dim, width), vector = vector_words(words);
        const uint32_t mask = (1u << width) - 1;
        const int total = b.n_places / kStep * words * kLanes;
        for (int i = threadIdx.x; i < total; i += blockDim.x) {
            const int step = i / (words * kLanes), rest = i % (words * kLanes);
            const int word = rest / (vector * kLanes) * vector + rest % vector, lane = rest / vector % kLanes;
            uint32_t bytes = 0;
            for (int s = 0; s < 8 / width; ++s) {
                const int reg = word * (8 / width) + s;
                for (int j = 0; reg < dim / 8 && j < 4; ++j) {
                    const int place =
                        step * kStep + (key ? reg / (dim / 16) * 8 + lane / 4 : j / 2 * 8 + lane % 4 * 2 + j % 2);
                    const int channel = key ? reg % (dim / 16) * 16 + lane % 4 * 4 + j : reg * 8 + lane / 4;
                    bytes |= (codes[place * dim + channel] >> low & mask) << (8 * j + s * width);
                }
            }
            reinterpret_cast<uint32_t *>(to)[i] = bytes;
        }
        to += plane_bytes(b.n_places, dim, width);
    }
}

// Second pass: everything of a block. grid [max_blocks, n_kv_heads, 2 sides]
__global__ void encode(Task t) {
    extern __shared__ float x[];
    const int head = blockIdx.y, dim = t.f.head_dim;
    const bool key = blockIdx.z == 0;
    const FoundBlock b = find_block(t.f, t.counts(head), blockIdx.x);
    if (!b.exists || t.header().magic == 0) {
        return;
    }
    const BlockRows rows = {x, dim + 1};
    auto * codes = reinterpret_cast<uint8_t *>(x + step_places(t.f.group) * rows.stride);
    load_rows(t, b, head, key, rows);
    const SegmentLayout l = t.layout();
    const SidePlace side(t.f, l, t.to, head, b, t.table(l, head)[t.f.n_tiers + b.tier], key);
    const format::HeadUnits & units = t.units(l, head);
    const float range_unit = key ? units.k_range : units.v_range, mid_unit = key ? units.k_mid : units.v_mid;
    if (format::block_param_entries(t.f, side.how, b.n_places) > 0) {
        write_block_params(rows, b, side, dim, range_unit, mid_unit);
        __syncthreads();
    }
    const int bits = side.how.bits[b.tier];
    const ParamReader params(side.how, b.tier, side.params, side.n, range_unit, mid_unit);
    const float most = format::levels(bits);
    for (int i = threadIdx.x; i < b.n_places * dim; i += blockDim.x) {
        const int place = i / dim, c = i % dim;
        uint8_t code = 0;
        if (place < b.n && bits > 0) {
            const Value v = params.at(side.entry(place, c, b.n_places, dim));
            const float inverse = v.scale != 0 ? 1 / v.scale : 0;
            const float exact = (rows.x[place * rows.stride + c] - v.min) * inverse;
            code = uint8_t(int(fminf(fmaxf(0.0f, exact), most) + 0.5f));
        }
        codes[i] = code;
    }
    __syncthreads();
    pack_codes(codes, b, dim, bits, key, side.codes);
}

}  // namespace
}  // namespace zipcache::cuda

size_t ggml_zipcache_cuda_quantize_kv_workspace(const ggml_zipcache_format * format, int64_t n_tokens) {
    return zipcache::cuda::sizes_of(*format, n_tokens).size;
}

const char * ggml_zipcache_cuda_quantize_kv(const ggml_zipcache_format * format, const ggml_zipcache_rows * rows,
                                            uint8_t * to, size_t capacity, void * workspace, size_t workspace_bytes,
                                            void * stream) {
    using namespace zipcache;
    using namespace zipcache::cuda;
    const auto & f = *format;
    if (const char * error = ggml_zipcache_cuda_format_error(format)) {
        return error;
    }
    if (rows->n_tokens < 1 || capacity < sizeof(format::SegmentHeader)) {
        return "quantize_kv got no tokens, or no room for a header; accepted: from 1 token, from 16 bytes";
    }
    const Sizes sizes = sizes_of(f, rows->n_tokens);
    if (workspace_bytes < size_t(sizes.size)) {
        return "quantize_kv got a workspace that is too small; accepted: ggml_zipcache_cuda_quantize_kv_workspace()";
    }
    auto * work = static_cast<uint8_t *>(workspace);
    const Task task = {
        f,
        *rows,
        to,
        int64_t(capacity),
        {reinterpret_cast<uint32_t *>(work), reinterpret_cast<uint32_t *>(work + sizes.token),
         reinterpret_cast<Widest *>(work + sizes.widest), reinterpret_cast<SharedRange *>(work + sizes.whole),
         reinterpret_cast<SharedRange *>(work + sizes.shared), ggml_zipcache_cuda_max_places(format, rows->n_tokens),
         ggml_zipcache_cuda_max_blocks(format, rows->n_tokens)}};
    const auto at = static_cast<cudaStream_t>(stream);
    cudaMemsetAsync(work, 0, sizes.token, at);
    cudaMemsetAsync(work + sizes.token, 0xFF, sizes.size - sizes.token, at);
    cudaMemsetAsync(to, 0, capacity, at);  // gaps too, so that equal input gives equal bytes
    const int n_orders = format::n_orders(f);
    order_tokens<<<n_orders, kOrderThreads, 0, at>>>(task);
    write_tables<<<1, kThreads, f.n_kv_heads * f.n_tiers * sizeof(TierSize), at>>>(task);
    const int64_t tags = n_orders * format::tag_bytes(f, rows->n_tokens);
    if (tags > 0) {
        write_tags<<<unsigned((tags + kThreads - 1) / kThreads), kThreads, 0, at>>>(task);
    }
    const int row_bytes = int(step_places(f.group)) * (f.head_dim + 1) * int(sizeof(float));
    const int shared = row_bytes + int(step_places(f.group)) * f.head_dim;
    cudaFuncSetAttribute(measure, cudaFuncAttributeMaxDynamicSharedMemorySize, row_bytes);
    cudaFuncSetAttribute(encode, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    const dim3 blocks(unsigned(task.work.max_blocks), f.n_kv_heads, 2);
    measure<<<blocks, kThreads, row_bytes, at>>>(task);
    write_head<<<dim3(f.n_kv_heads, 2), kThreads, 0, at>>>(task);
    write_shared<<<unsigned(task.work.max_blocks), 64, 0, at>>>(task);
    encode<<<blocks, kThreads, shared, at>>>(task);
    return launch_error();
}

#include "attend_kv_launch.h"
#include "attend_kv_shares.cuh"
#include "cuda/launch.h"
#include "cuda_index.h"
#include "ggml-zipcache-cuda.h"

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;

struct Args {
    ggml_zipcache_cuda_index_args a;
    int n_parts;
    IndexLayout layout;
    uint8_t * index;

    __device__ int n_segments() const { return min(max(*a.n_segments, 0), a.max_segments); }
    template <class T>
    __device__ T * at(int64_t offset) const {
        return reinterpret_cast<T *>(index + offset);
    }
};

struct Counts {
    const uint32_t * counts;   // [n_tiers]
    const uint32_t * offsets;  // [n_tiers]
    const format::HeadUnits * units;
};

__device__ Counts counts_of(const ggml_zipcache_format & f, const uint8_t * segment, int head) {
    const auto & header = *reinterpret_cast<const format::SegmentHeader *>(segment);
    const SegmentLayout l = segment_layout(f, header.n_tokens, header.n_places);
    const auto * counts = reinterpret_cast<const uint32_t *>(segment + l.heads + head * l.head_bytes);
    return {counts, counts + f.n_tiers, reinterpret_cast<const format::HeadUnits *>(counts + 2 * f.n_tiers)};
}

// Blocks of a tier, and what the first ones and the last cost.
struct TierCost {
    uint32_t blocks, whole, last;

    __device__ TierCost(const ggml_zipcache_format & f, int tier, uint32_t count) {
        blocks = static_cast<uint32_t>(tier_blocks(f, tier, count));
        whole = block_cost(block_layout(f, tier, step_places(f.group)).size);
        const uint32_t rest = count % f.group;
        last = rest ? block_cost(block_layout(f, tier, step_places(rest)).size) : whole;
    }
    __device__ uint32_t total() const { return blocks == 0 ? 0 : (blocks - 1) * whole + last; }
};

__device__ Before cost_of(const ggml_zipcache_format & f, const uint8_t * segment, int head) {
    const Counts table = counts_of(f, segment, head);
    Before sum = {};
    for (int t = 0; t < f.n_tiers; ++t) {
        const TierCost tier(f, t, table.counts[t]);
        sum.blocks += tier.blocks;
        sum.cost += tier.total();
    }
    return sum;
}

__device__ void write_record(const ggml_zipcache_cuda_segment & s, int head, HeadRecord & r) {
    const auto & f = *s.format;
    const auto & header = *reinterpret_cast<const format::SegmentHeader *>(s.data);
    const SegmentLayout l = segment_layout(f, header.n_tokens, header.n_places);
    const int64_t channel = int64_t(head) * f.head_dim;
    r.k = {s.k_divisor ? s.k_divisor + channel : nullptr, f.k.rotate, 0};
    r.v = {s.v_divisor ? s.v_divisor + channel : nullptr, f.v.rotate, 0};
    r.v_params = s.data + l.v_params + head * format::segment_param_bytes(f, f.v);
    r.k_shared = reinterpret_cast<const format::Pair *>(s.data + l.k_shared);
    r.position = s.position ? s.position + head * s.max_places : nullptr;
    r.first_seen = static_cast<uint32_t>(s.first_seen);
    r.last_seen = static_cast<uint32_t>(s.last_seen);
    r.units = *counts_of(f, s.data, head).units;
    r.k_scope = f.k.scope;
    r.k_kind = f.k.params;
    r.v_scope = f.v.scope;
    r.v_kind = f.v.params;
    r.k_block = static_cast<uint16_t>(min(f.k.block, f.head_dim));
    r.v_block = static_cast<uint16_t>(min(f.v.block, f.head_dim));
    r.k_shared_heads = format::spans_heads(f, f.k);
    for (int t = 0; t < format::kMaxTiers; ++t) {
        r.k_shrink[t] = f.k.shrink[t];
        r.v_shrink[t] = f.v.shrink[t];
    }
}

// The header, by one thread. The space of all segments, or of none of them.
__device__ void write_header(const Args & args, bool k_same, bool v_same) {
    IndexHeader header = {};
    header.k.same = k_same;
    if (args.n_segments() > 0) {
        const auto & s = args.a.segments[0];
        header.k = {s.k_divisor, s.format->k.rotate, k_same};
        header.v = v_same ? Space{s.v_divisor, s.format->v.rotate, 1} : Space{nullptr, 0, 0};
    }
    const IndexLayout & l = args.layout;
    header.records = l.records;
    header.blocks = l.blocks;
    header.max_segments = args.a.max_segments;
    header.max_blocks = static_cast<uint32_t>(args.a.max_blocks);
    *args.at<IndexHeader>(0) = header;
}

// One block of threads for each head: records, and the sums over segments.
__global__ void index_segments(Args args) {
    __shared__ Before sums[kThreads];
    const int head = blockIdx.x, n = args.n_segments();
    Before * before = args.at<Before>(args.layout.before) + int64_t(head) * (args.a.max_segments + 1);
    Before base = {};
    bool k_same = true, v_same = true;
    for (int first = 0; first < n; first += kThreads) {
        const int s = first + int(threadIdx.x);
        Before own = {};
        if (s < n) {
            const auto & segment = args.a.segments[s];
            const auto & one = args.a.segments[0];
            own = cost_of(*segment.format, segment.data, head);
            write_record(segment, head,
                         args.at<HeadRecord>(args.layout.records)[int64_t(s) * args.a.n_kv_heads + head]);
            k_same &= segment.k_divisor == one.k_divisor && segment.format->k.rotate == one.format->k.rotate;
            v_same &= segment.v_divisor == one.v_divisor && segment.format->v.rotate == one.format->v.rotate;
        }
        sums[threadIdx.x] = own;
        for (int step = 1; step < kThreads; step *= 2) {
            __syncthreads();
            const Before left = int(threadIdx.x) >= step ? sums[threadIdx.x - step] : Before{};
            __syncthreads();
            sums[threadIdx.x].blocks += left.blocks;
            sums[threadIdx.x].cost += left.cost;
        }
        __syncthreads();
        if (s < n) {
            before[s + 1] = {base.blocks + sums[threadIdx.x].blocks, base.cost + sums[threadIdx.x].cost};
        }
        base.blocks += sums[kThreads - 1].blocks;
        base.cost += sums[kThreads - 1].cost;
        __syncthreads();
    }
    k_same = __syncthreads_and(k_same);
    v_same = __syncthreads_and(v_same);
    if (threadIdx.x == 0) {
        before[0] = {};
        args.at<uint32_t>(args.layout.n_blocks)[head] = min(base.blocks, uint32_t(args.a.max_blocks));
        args.at<uint32_t>(args.layout.cost)[head] = base.cost;
        args.at<uint32_t>(args.layout.start)[int64_t(head) * (kQuanta + 1)] = 0;
        if (head == 0) {
            write_header(args, k_same, v_same);
        }
    }
}

// The last segment that begins at or before a block.
__device__ int segment_of(const Before * before, int n, uint32_t block) {
    int low = 0, high = n;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (before[middle].blocks <= block ? low : high) = middle;
    }
    return low;
}

// One thread for each block: its entry, and the shares of the cost that end in it.
__global__ void index_blocks(Args args) {
    const int head = blockIdx.y, n = args.n_segments();
    const uint32_t number = blockIdx.x * kThreads + threadIdx.x;
    if (n == 0 || number >= args.at<uint32_t>(args.layout.n_blocks)[head]) {
        return;
    }
    const Before * before = args.at<Before>(args.layout.before) + int64_t(head) * (args.a.max_segments + 1);
    const int s = segment_of(before, n, number);
    const auto & segment = args.a.segments[s];
    const auto & f = *segment.format;
    const Counts table = counts_of(f, segment.data, head);
    uint32_t i = number - before[s].blocks, cost = before[s].cost;
    int64_t place = 0;
    for (int t = 0; t < f.n_tiers; ++t) {
        const uint32_t count = table.counts[t];
        const TierCost tier(f, t, count);
        if (i >= tier.blocks) {
            i -= tier.blocks;
            cost += tier.total();
            place += cuda_tier_places(f, t, count);
            continue;
        }
        const int tokens = min(f.group, int(count - i * f.group));
        const BlockLayout whole = block_layout(f, t, step_places(f.group));
        const BlockLayout own = block_layout(f, t, step_places(tokens));
        BlockRef ref = {};
        ref.data = segment.data + table.offsets[t] + i * whole.size;
        ref.place = static_cast<uint32_t>(place + i * step_places(f.group));
        ref.segment = static_cast<uint16_t>(s);
        ref.tier = static_cast<uint8_t>(t);
        ref.n = static_cast<uint8_t>(tokens);
        ref.v_codes = static_cast<uint16_t>(own.v_codes / kAlign);
        ref.v_params = static_cast<uint16_t>(own.v_params / kAlign);
        ref.size = static_cast<uint16_t>(own.size / kAlign);
        ref.k_bits = static_cast<uint8_t>(f.k.bits[t]);
        ref.v_bits = static_cast<uint8_t>(f.v.bits[t]);
        const auto & header = *reinterpret_cast<const format::SegmentHeader *>(segment.data);
        const SegmentLayout layout = segment_layout(f, header.n_tokens, header.n_places);
        const int64_t from_start = ref.data - segment.data;
        if (f.k.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
            const int64_t set =
                f.k.params == GGML_ZIPCACHE_PARAMS_F16_PAIR ? t * f.head_dim * int64_t(sizeof(format::Pair)) : 0;
            const int64_t channels = layout.k_params + head * format::segment_param_bytes(f, f.k) + set;
            ref.k_channels = static_cast<uint32_t>(from_start - channels);
        }
        if (format::spans_heads(f, f.v)) {
            const int64_t pairs = layout.v_shared + ref.place * int64_t(sizeof(format::Pair));
            ref.v_pairs = static_cast<uint32_t>(from_start - pairs);
        }
        args.at<BlockRef>(args.layout.blocks)[head * args.a.max_blocks + number] = ref;
        cost += i * tier.whole;
        const uint64_t total = before[n].cost, end = cost + (i + 1 == tier.blocks ? tier.last : tier.whole);
        uint32_t * start = args.at<uint32_t>(args.layout.start) + int64_t(head) * (kQuanta + 1);
        for (uint64_t k = cost * uint64_t(kQuanta) / total + 1; k * total <= end * kQuanta; ++k) {
            start[k] = number + 1;
        }
        return;
    }
}

// One block of threads: everybody's part, with a full window. A window that holds less leaves its parts less to do.
__global__ void plan_parts(Args args) {
    __shared__ uint32_t cost[kThreads], n_units[kThreads];
    const int n_heads = args.a.n_kv_heads;
    if (n_heads > kThreads) {
        return;  // attend_kv does not look at it: they are not few
    }
    const int windows = window_units(int(args.a.window_capacity));
    auto load_of = [&](int head) {
        return Load{uint32_t(windows), window_cost(args.a.head_dim), args.at<uint32_t>(args.layout.n_blocks)[head],
                    args.at<uint32_t>(args.layout.cost)[head],
                    args.at<uint32_t>(args.layout.start) + int64_t(head) * (kQuanta + 1)};
    };
    if (int(threadIdx.x) < n_heads) {
        const Load load = load_of(threadIdx.x);
        cost[threadIdx.x] = load.cost();
        n_units[threadIdx.x] = load.n_units();
    }
    __syncthreads();
    const Few few = {cost, n_units, n_heads, args.n_parts, attend_warps(args.a.head_dim)};
    for (int i = threadIdx.x; i < args.n_parts; i += kThreads) {
        const Share share = few.share_of(i);
        Part part = {uint16_t(share.item), uint16_t(share.part), uint16_t(share.n_parts), uint16_t(share.others)};
        if (share.item < n_heads) {
            const Turns turns = few.turns_of(share, load_of(share.item));
            if (turns.windows > turns.first) {
                part.first_window = uint16_t(turns.first);
                part.last_window =
                    turns.windows == windows ? UINT16_MAX : uint16_t(turns.windows);  // all that are left
            }
            part.first_block = max(turns.windows, windows) - windows;
            part.last_block = max(turns.last, windows) - windows;
        }
        args.at<Part>(args.layout.parts)[i] = part;
    }
}

}  // namespace
}  // namespace zipcache::cuda

size_t ggml_zipcache_cuda_index_bytes(int32_t n_kv_heads, int32_t max_segments, int64_t max_blocks) {
    return zipcache::cuda::index_layout(n_kv_heads, zipcache::cuda::Device().multiprocessors, max_segments, max_blocks)
        .size;
}

const char * ggml_zipcache_cuda_index_kv(const ggml_zipcache_cuda_index_args * args, uint8_t * index, void * stream) {
    using namespace zipcache::cuda;
    if (args->n_kv_heads < 1 || args->max_segments < 0 || args->max_segments > 65535 || args->max_blocks < 0) {
        return "index_kv got a count out of range; accepted: KV heads from 1, segments up to 65535, blocks from 0";
    }
    const int n_parts = Device().multiprocessors;
    const Args a = {*args, n_parts, index_layout(args->n_kv_heads, n_parts, args->max_segments, args->max_blocks),
                    index};
    const auto at = static_cast<cudaStream_t>(stream);
    index_segments<<<args->n_kv_heads, kThreads, 0, at>>>(a);
    if (args->max_blocks > 0) {
        const dim3 grid(unsigned((args->max_blocks + kThreads - 1) / kThreads), args->n_kv_heads);
        index_blocks<<<grid, kThreads, 0, at>>>(a);
    }
    plan_parts<<<1, kThreads, 0, at>>>(a);
    return launch_error();
}

#pragma once
// attend_kv in one launch. An item is one KV head of one sequence with up to 8 of its query heads. The cost of all
// items is cut into equal runs, one for each block of threads; in a run its warps take units in turn. Who finishes an
// item last merges it.
#include "attend_kv_launch.h"
#include "attend_kv_window.cuh"
#include "cuda/launch.h"

namespace zipcache::cuda {

// Rows of tokens of the window that are seen: [first, last).
struct Seen {
    int first, last;
};

__device__ __forceinline__ Seen seen_of(const AttendParams & p, const ggml_zipcache_cuda_sequence & s) {
    const int n = *s.n_tokens;
    return {p.a.sliding_window > 0 ? max(0, n - p.a.sliding_window) : 0, n};
}

struct Item {
    int number, head, row, n_rows;  // KV head; its first query head, how many
    const ggml_zipcache_cuda_sequence * sequence;
    const IndexHeader * index;   // NULL: no blocks
    const uint32_t * start;      // [kQuanta + 1] of the head
    const BlockRef * blocks;     // [n_blocks] of the head
    const HeadRecord * records;  // of the head: one in n_kv_heads
    Seen seen;
    uint32_t window_units, window_cost, n_blocks, packed_cost;

    __device__ __forceinline__ uint32_t cost() const { return window_units * window_cost + packed_cost; }
    __device__ __forceinline__ int n_units() const { return window_units + n_blocks; }
};

template <class T>
__device__ __forceinline__ const T * index_at(const IndexHeader * index, uint64_t offset) {
    return reinterpret_cast<const T *>(reinterpret_cast<const uint8_t *>(index) + offset);
}

template <int D>
__device__ Item item_at(const AttendParams & p, int number) {
    Item item;
    item.number = number;
    const int group = p.a.n_heads / p.a.n_kv_heads, pass = number % p.n_passes;
    item.head = number / p.n_passes % p.a.n_kv_heads;
    const int sequence = number / p.n_passes / p.a.n_kv_heads;
    item.sequence = p.a.sequences + sequence;
    item.row = sequence * p.a.n_heads + item.head * group + pass * kRows;
    item.n_rows = min(kRows, group - pass * kRows);
    item.seen = seen_of(p, *item.sequence);
    item.index = reinterpret_cast<const IndexHeader *>(item.sequence->index);
    item.window_units = (item.seen.last - item.seen.first + kWindowTokens - 1) / kWindowTokens;
    item.window_cost = block_cost(kWindowTokens * D * 4);
    item.n_blocks = item.packed_cost = 0;
    item.start = nullptr;
    item.blocks = nullptr;
    item.records = nullptr;
    if (item.seen.last > 0 && item.index) {
        // at offsets that don't wait for the header: loads follow one another long enough
        const IndexLayout l = index_layout(p.a.n_kv_heads, 0, 0);
        item.start = index_at<uint32_t>(item.index, l.start) + int64_t(item.head) * (kQuanta + 1);
        item.n_blocks = index_at<uint32_t>(item.index, l.n_blocks)[item.head];
        item.packed_cost = index_at<uint32_t>(item.index, l.cost)[item.head];
        item.blocks = index_at<BlockRef>(item.index, item.index->blocks) + int64_t(item.head) * item.index->max_blocks;
        item.records = index_at<HeadRecord>(item.index, item.index->records) + item.head;
    }
    return item;
}

// The first unit that begins at or behind a place in an item's cost.
__device__ __forceinline__ int unit_at(const Item & item, uint32_t at) {
    if (at >= item.cost()) {
        return item.n_units();
    }
    const uint32_t window = item.window_units * item.window_cost;
    if (at < window || item.n_blocks == 0) {
        return int((at + item.window_cost - 1) / item.window_cost);
    }
    return int(item.window_units + item.start[uint64_t(at - window) * kQuanta / item.packed_cost]);
}

// The run of costs that a block of threads has of all items, and the item it begins in.
struct Run {
    uint64_t total, first, last;  // [first, last)
    int item;
    uint64_t before;  // cost of the items before

    // who has a place
    __device__ __forceinline__ int owner(uint64_t at) const { return int(((at + 1) * gridDim.x - 1) / total); }
};

// costs: shared [kMaxItems]. All threads call it.
template <int D>
__device__ void find_run(const AttendParams & p, uint32_t * costs, Run & run) {
    for (int i = threadIdx.x; i < p.n_items; i += blockDim.x) {
        const Item item = item_at<D>(p, i);
        costs[i] = item.cost();
        if (costs[i] == 0 && i % gridDim.x == blockIdx.x) {  // an idle sequence: nobody else writes its output
            for (int j = 0; j < item.n_rows * D; ++j) {
                p.a.out[int64_t(item.row) * D + j] = 0;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x < kLanes) {
        uint64_t total = 0;
        for (int i = threadIdx.x; i < p.n_items; i += kLanes) {
            total += costs[i];
        }
#pragma unroll 1
        for (int step = 1; step < kLanes; step *= 2) {
            total += __shfl_xor_sync(~0u, total, step);
        }
        const uint64_t first = total * blockIdx.x / gridDim.x, last = total * (blockIdx.x + 1) / gridDim.x;
        uint64_t before = 0;
        int item = 0;
        for (int base = 0; base < p.n_items; base += kLanes) {
            const uint32_t own = base + int(threadIdx.x) < p.n_items ? costs[base + threadIdx.x] : 0;
            uint64_t end = own;
#pragma unroll 1
            for (int step = 1; step < kLanes; step *= 2) {
                const uint64_t left = __shfl_up_sync(~0u, end, step);
                end += int(threadIdx.x) >= step ? left : 0;
            }
            // items that end at or before `first` are passed by
            const uint32_t passed = __ballot_sync(~0u, base + int(threadIdx.x) < p.n_items && before + end <= first);
            item += __popc(passed);
            const uint64_t sum = __shfl_sync(~0u, end, passed ? __popc(passed) - 1 : 0);
            before += passed ? sum : 0;
            if (__popc(passed) < kLanes) {
                break;
            }
        }
        if (threadIdx.x == 0) {
            run = {total, first, last, item, before};
        }
    }
    __syncthreads();
}

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

// The query heads of an item in the space of its segments, in the order of KeyQuery.
template <int D>
__device__ void store_queries(Queries & queries, float * stored) {
    auto place = [](int row, int channel) {
        return (channel / 16 * kLanes + row * 4 + channel % 16 / 4) * 4 + channel % 4;
    };
    for (int i = threadIdx.x; i < kRows * D; i += blockDim.x) {
        const bool used = i / D < queries.n_rows;
        const float divisor = queries.home.divisor ? queries.home.divisor[i % D] : 1.0f;
        stored[place(i / D, i % D)] = used ? queries.q[i] * queries.scale * divisor : 0.0f;
    }
    if (queries.home.rotate) {
        hadamard_rows<D>(stored, kRows, place);
    }
    __syncthreads();
    const int lane = threadIdx.x % kLanes;
    for (int row = threadIdx.x / kLanes; row < kRows; row += blockDim.x / kLanes) {
        float most = 0;
        for (int c = lane; c < D; c += kLanes) {
            most = fmaxf(most, fabsf(stored[place(row, c)]));
        }
#pragma unroll
        for (int step = 1; step < kLanes; step *= 2) {
            most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
        }
        const float up = most > 0 ? kShare / most : 0;
        for (int c = lane; c < D; c += kLanes) {
            stored[place(row, c)] *= up;
        }
        if (lane == 0) {
            queries.unit[row] = most / kShare;
        }
    }
    __syncthreads();
}

// One warp's units of an item: first, first + step, ... below last. ring: [2, kSlot], the warp's own.
template <int D, bool Any>
struct Worker {
    const Item & item;
    const Queries & queries;
    uint32_t ring, record;  // offsets in shared memory
    int lane;
    int n_kv_heads;

    __device__ __forceinline__ bool is_window(int unit) const { return unit < int(item.window_units); }

    __device__ __forceinline__ Ref ref_of(int unit) const {
        Ref ref = {};
        if (!is_window(unit)) {
            const auto * from = reinterpret_cast<const uint4 *>(item.blocks + (unit - item.window_units));
            ref.a = from[0];
            ref.b = from[1];
        }
        return ref;
    }

    __device__ __forceinline__ int first_token(int unit) const { return item.seen.first + unit * kWindowTokens; }

    __device__ __forceinline__ void copy_window(int unit, bool key) const {
        const auto & s = *item.sequence;
        copy_rows<D>(ring + (key ? 0 : Shape<D>::kSlot), (key ? s.k : s.v) + item.head * s.capacity * D,
                     first_token(unit), item.seen.last, lane);
    }

    __device__ __forceinline__ void copy(int unit, const Ref & ref, bool key) const {
        if (is_window(unit)) {
            copy_window(unit, key);
            return;
        }
        const uint32_t first = key ? 0 : ref.v_codes(), n = key ? ref.v_codes() : ref.size() - first;
        const uint32_t slot = shared_address(shared_bytes()) + ring + (key ? 0 : Shape<D>::kSlot);
        const uint8_t * from = ref.data() + first;
#pragma unroll 1
        for (uint32_t base = lane * 16; base < n; base += 4 * kLanes * 16) {
#pragma unroll
            for (uint32_t i = base; i < base + 4 * kLanes * 16; i += kLanes * 16) {
                if (i < n) {
                    copy_async(slot + i, from + i);
                }
            }
        }
        if (!key && ref.v_pairs() > 0 && lane < ref.n_steps() * 4) {  // four pairs a lane
            copy_async(slot + ref.v_params() - first + lane * 16, ref.data() - ref.v_pairs() + lane * 16);
        }
    }

    // Starts copying the first unit, if there is one.
    __device__ __forceinline__ Ref begin(int first, int last) const {
        Ref ref = {};
        if (first < last) {
            ref = ref_of(first);
            copy(first, ref, true);
            commit_copies();
            copy(first, ref, false);
            commit_copies();
        }
        return ref;
    }

    // The record of a segment, in shared memory: it is read often, and what the cache holds goes by quickly.
    __device__ __forceinline__ void load_record(uint32_t segment) const {
        __syncwarp();
        if (lane < int(sizeof(HeadRecord) / sizeof(uint4))) {
            const auto * from = reinterpret_cast<const uint4 *>(item.records + int64_t(segment) * n_kv_heads);
            reinterpret_cast<uint4 *>(shared_bytes() + record)[lane] = from[lane];
        }
        __syncwarp();
    }

    // ref: what begin() gave.
    __device__ __forceinline__ void run(int first, int step, int last, Ref ref, Sums<D> & sums) const {
        KeyQuery<D> query;
        const uint32_t keys = ring, values = ring + Shape<D>::kSlot;
        const auto & r = in_shared<HeadRecord>(record);
        uint32_t segment = ~0u;
        Ref next = {};
        for (int unit = first; unit < last; unit += step) {
            const bool more = unit + step < last;
            if (more) {
                next = ref_of(unit + step);
            }
            if (is_window(unit)) {
                wait_copies<1>();
                __syncwarp();
                float s[8];
                window_logits<D>(queries, keys, item.seen.last - first_token(unit), lane, s);
                advance(unit + step, more, next, true);
                add_window<D>(values, s, lane, sums);
            } else {
                if (ref.segment() != segment) {
                    segment = ref.segment();
                    load_record(segment);
                }
                wait_copies<1>();
                __syncwarp();
                float s[16];
                prepare_query<D, Any>(queries, r, ref, keys, lane, query);
                key_logits<D, Any>(query, r, ref, keys, lane, s);
                advance(unit + step, more, next, true);
                hide(r, ref, lane, s);
                add_values<D, Any>({r, ref, values, ref.n_steps()}, s, lane, sums);
            }
            advance(unit + step, more, next, false);
            ref = next;
        }
        wait_copies<0>();
    }

    // After keys: their slot takes the next unit's, and this one's values are there. After values: likewise.
    __device__ __forceinline__ void advance(int unit, bool more, const Ref & next, bool key) const {
        __syncwarp();
        if (more) {
            copy(unit, next, key);
        }
        commit_copies();
        if (key) {
            wait_copies<1>();
            __syncwarp();
        }
    }
};

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

// An item as all warps of a block see it; in shared memory, to leave the registers to the sums.
struct Shared {
    Run run;
    Item item;
    Queries queries;
    Space v_home;
    Merged merged;
};

// By one thread.
template <int D, bool Any>
__device__ void open_item(const AttendParams & p, int number, uint32_t stored, Shared & shared) {
    const Item item = item_at<D>(p, number);
    Space k_home = {}, v_home = {};
    if (item.n_blocks > 0) {
        k_home = item.index->k;
        v_home = item.index->v;
        const int64_t channel = int64_t(item.head) * D;
        k_home.divisor += k_home.divisor ? channel : 0;
        v_home.divisor += v_home.divisor ? channel : 0;
    }
    // the fast kernel has but one space of queries: what it cannot compute must not look like a result
    const bool wrong = !Any && item.n_blocks > 0 && !k_home.same;
    shared.item = item;
    shared.queries = {p.a.q + int64_t(item.row) * D, item.n_rows, wrong ? NAN : p.a.scale * kLog2e, stored, k_home, {}};
    shared.v_home = v_home;
}

template <int D, bool Any>
__global__ void __launch_bounds__(Shape<D>::kWarps * kLanes, 1) attend(AttendParams p) {
    using S = Shape<D>;
    __shared__ Shared shared;
    const int warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, n_warps = blockDim.x / kLanes;
    const uint32_t stored = S::ring_bytes(n_warps);
    float * acc = reinterpret_cast<float *>(shared_bytes() + stored);  // where the stored queries were
    float * red = reinterpret_cast<float *>(shared_bytes());
    find_run<D>(p, reinterpret_cast<uint32_t *>(shared_bytes()), shared.run);
    const Run & run = shared.run;
    uint64_t before = run.before;
    for (int number = run.item; number < p.n_items && before < run.last; ++number) {
        if (threadIdx.x == 0) {
            open_item<D, Any>(p, number, stored, shared);
        }
        __syncthreads();
        const Item & item = shared.item;
        const uint64_t cost = item.cost();
        if (cost > 0) {
            const uint64_t from = max(run.first, before) - before, to = min(run.last, before + cost) - before;
            const Worker<D, Any> worker = {item,
                                           shared.queries,
                                           uint32_t(warp * 2 * S::kSlot),
                                           uint32_t(stored + S::kQueries + warp * sizeof(HeadRecord)),
                                           lane,
                                           p.a.n_kv_heads};
            const int first = unit_at(item, uint32_t(from)) + warp, last = unit_at(item, uint32_t(to));
            const Ref ref = worker.begin(first, last);
            store_queries<D>(shared.queries, acc);
            Sums<D> sums;
            sums.clear(shared.v_home);
            worker.run(first, n_warps, last, ref, sums);
            sums.move_to(shared.v_home, lane);
            merge_warps<D>(sums, item.n_rows, red, acc, shared.merged);
            const int first_part = run.owner(before), n_parts = run.owner(before + cost - 1) - first_part + 1;
            if (n_parts == 1 || merge_parts<D>(p, item, first_part, n_parts, acc, shared.merged)) {
                finish<D>(p, item, shared.v_home, acc, shared.merged);
            }
        }
        before += cost;
        __syncthreads();
    }
}

template <int D, bool Any>
const char * launch(const AttendParams & p, cudaStream_t stream) {
    const Device device;
    cudaFuncAttributes attributes;
    cudaError_t error = cudaFuncGetAttributes(&attributes, attend<D, Any>);
    if (error != cudaSuccess) {
        return cudaGetErrorString(error);
    }
    int n_warps = Shape<D>::kWarps;
    while (n_warps > 1 && Shape<D>::shared_bytes(n_warps) + int(attributes.sharedSizeBytes) > device.shared_bytes) {
        --n_warps;
    }
    const int shared = Shape<D>::shared_bytes(n_warps);
    error = cudaFuncSetAttribute(attend<D, Any>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) {
        return cudaGetErrorString(error);
    }
    attend<D, Any><<<device.multiprocessors, n_warps * kLanes, shared, stream>>>(p);
    return launch_error();
}

}  // namespace zipcache::cuda

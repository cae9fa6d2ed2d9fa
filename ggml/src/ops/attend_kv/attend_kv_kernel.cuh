#pragma once
// attend_kv in one launch: a block of threads works through its run of items, its warps take units in turn, and who
// finishes an item last merges it.
#include "attend_kv_merge.cuh"
#include "attend_kv_window.cuh"
#include "cuda/launch.h"

namespace zipcache::cuda {

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

#pragma once
// Which part of the work is whose. An item is one KV head of one sequence with up to 8 of its query heads; the cost of
// all items is cut into equal runs, one for each block of threads.
#include "attend_kv_shape.cuh"

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

}  // namespace zipcache::cuda

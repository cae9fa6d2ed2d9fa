#pragma once
// Which part of the work is whose. An item is one KV head of one sequence with up to 8 of its query heads. Few items
// get blocks of threads of their own, each as many as its cost asks for: a block that worked on two would end last by
// all that an item takes whatever its length. Where there are many, the cost of all is cut into equal runs, one for
// each block.
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
    const uint32_t * start;      // [kQuanta + 1] of the head
    const BlockRef * blocks;     // [n_blocks] of the head
    const HeadRecord * records;  // of the head: one in n_kv_heads
    Space k_home, v_home;        // in which its queries are stored and its sums are given; the divisors are the head's
    bool one_space;              // all segments store keys in k_home
    Seen seen;
    uint32_t window_units, window_cost, n_blocks, packed_cost;
    float quanta_by_cost;  // kQuanta / packed_cost

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
    const auto * index = reinterpret_cast<const IndexHeader *>(item.sequence->index);
    item.window_units = (item.seen.last - item.seen.first + kWindowTokens - 1) / kWindowTokens;
    item.window_cost = kWindowTurns * block_cost(kWindowTokens * D * 4);
    item.n_blocks = item.packed_cost = 0;
    item.quanta_by_cost = 0;
    item.k_home = item.v_home = {};
    item.one_space = true;
    item.start = nullptr;
    item.blocks = nullptr;
    item.records = nullptr;
    if (index) {
        // without waiting for the number of tokens, at offsets that don't wait for the header: loads follow one another
        // long enough
        const IndexHeader header = *index;
        const IndexLayout l = index_layout(p.a.n_kv_heads, 0, 0);
        item.start = index_at<uint32_t>(index, l.start) + int64_t(item.head) * (kQuanta + 1);
        const uint32_t n_blocks = index_at<uint32_t>(index, l.n_blocks)[item.head];
        const uint32_t packed_cost = index_at<uint32_t>(index, l.cost)[item.head];
        const bool idle = item.seen.last == 0;
        item.n_blocks = idle ? 0 : n_blocks;
        item.packed_cost = idle ? 0 : packed_cost;
        item.blocks = index_at<BlockRef>(index, header.blocks) + int64_t(item.head) * header.max_blocks;
        item.records = index_at<HeadRecord>(index, header.records) + item.head;
        if (item.n_blocks > 0) {
            item.quanta_by_cost = __fdividef(float(kQuanta), float(item.packed_cost));
            const int64_t channel = int64_t(item.head) * D;
            item.k_home = header.k;
            item.v_home = header.v;
            item.k_home.divisor += item.k_home.divisor ? channel : 0;
            item.v_home.divisor += item.v_home.divisor ? channel : 0;
            item.one_space = header.k.same;
        }
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
    // roughly: who begins there and who ends there round alike
    const auto quantum = uint32_t(float(at - window) * item.quanta_by_cost);
    return int(item.window_units + item.start[min(quantum, uint32_t(kQuanta))]);
}

// Which units of a share are whose: each warp takes one after the other, in turn. Not who is free takes the next one:
// sums must not depend on chance. A unit of the window takes as long as kWindowTurns blocks; in the round in which not
// all warps have one, the others take so many blocks.
struct Turns {
    int first, windows, last;  // units [first, windows) are of the window, [windows, last) blocks
    int n_warps;

    __device__ __forceinline__ int busy() const { return (windows - first) % n_warps; }  // warps of that round
    __device__ __forceinline__ int early() const { return (n_warps - busy()) * kWindowTurns; }
    __device__ __forceinline__ int first_block(int warp) const {
        return windows + (warp < busy() ? early() + warp : warp - busy());
    }
    __device__ __forceinline__ int begin(int warp) const {
        return first + warp < windows ? first + warp : first_block(warp);
    }
    __device__ __forceinline__ int after(int unit, int warp) const {
        if (unit < windows) {
            return unit + n_warps < windows ? unit + n_warps : first_block(warp);
        }
        if (unit - windows >= early()) {
            return unit + n_warps;
        }
        const int next = unit + n_warps - busy();
        return next - windows < early() ? next : windows + early() + warp;
    }
};

// A block's part of an item.
struct Share {
    int item;                 // n_items and more: there is none
    uint32_t from, to;        // places in the item's cost
    int first_part, n_parts;  // the blocks that have parts of it: the first one, how many

    __device__ __forceinline__ bool exists(const AttendParams & p) const { return item < p.n_items; }
};

__device__ __forceinline__ Turns turns_of(const Item & item, const Share & share, int n_warps) {
    const int first = unit_at(item, share.from), last = unit_at(item, share.to), window = int(item.window_units);
    return {first, min(max(first, window), last), last, n_warps};
}

// An idle sequence has nothing to do, and nobody else writes its output.
template <int D>
__device__ __forceinline__ void clear_output(const AttendParams & p, const Item & item) {
    for (int i = 0; i < item.n_rows * D; ++i) {
        p.a.out[int64_t(item.row) * D + i] = 0;
    }
}

__device__ __forceinline__ bool few_items(const AttendParams & p) {
    return 2 * p.n_items <= int(gridDim.x) && p.n_items <= int(blockDim.x);
}

// Blocks of threads for an item: of those that are spare after one for each, its share; no more than have work for half
// of their warps, and one where its warps do it at one go.
__device__ __forceinline__ int blocks_for(uint32_t cost, int n_units, float spare_by_cost) {
    const int n_warps = blockDim.x / kLanes, few = max(1, n_warps / 2);
    const int most = n_units <= n_warps ? 1 : (n_units + few - 1) / few;
    return cost > 0 ? min(most, 1 + int(float(cost) * spare_by_cost)) : 0;
}

// The block's own part of few items. work: shared [2, n_items]. All threads call it.
template <int D>
__device__ void find_share(const AttendParams & p, uint32_t * work, Item & item, Share & share) {
    const int own = threadIdx.x;
    Item mine;
    if (own < p.n_items) {
        mine = item_at<D>(p, own);
        work[own] = mine.cost();
        work[p.n_items + own] = mine.n_units();
        if (mine.cost() == 0 && own % gridDim.x == blockIdx.x) {
            clear_output<D>(p, mine);
        }
    }
    if (own == 0) {
        share.item = p.n_items;
    }
    __syncthreads();
    if (own < p.n_items && mine.cost() > 0) {
        float total = 0;
        for (int i = 0; i < p.n_items; ++i) {
            total += float(work[i]);
        }
        const float spare_by_cost = __fdividef(float(int(gridDim.x) - p.n_items), total) * (1 - 1e-5f);
        int first = 0;
        for (int i = 0; i < own; ++i) {
            first += blocks_for(work[i], work[p.n_items + i], spare_by_cost);
        }
        const int n = blocks_for(mine.cost(), mine.n_units(), spare_by_cost), part = int(blockIdx.x) - first;
        if (part >= 0 && part < n) {
            const uint32_t even = mine.cost() / n, odd = mine.cost() % n;
            item = mine;
            share = {own, even * part + min(odd, part), even * (part + 1) + min(odd, part + 1), first, n};
        }
    }
    __syncthreads();
}

// The run of costs that a block of threads has of all items.
struct Run {
    uint64_t total, first, last;  // [first, last)
    uint64_t before;              // cost of the items before the one that comes next
    int item;

    // who has a place
    __device__ __forceinline__ int owner(uint64_t at) const { return int(((at + 1) * gridDim.x - 1) / total); }
};

// costs: shared [kMaxItems]. All threads call it.
template <int D>
__device__ void find_run(const AttendParams & p, uint32_t * costs, Run & run) {
    for (int i = threadIdx.x; i < p.n_items; i += blockDim.x) {
        const Item item = item_at<D>(p, i);
        costs[i] = item.cost();
        if (costs[i] == 0 && i % gridDim.x == blockIdx.x) {
            clear_output<D>(p, item);
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
            run = {total, first, last, before, item};
        }
    }
    __syncthreads();
}

// The next part of a run, by one thread: item and share, which does not exist at its end.
template <int D>
__device__ void next_share(const AttendParams & p, Run & run, Item & item, Share & share) {
    share.item = p.n_items;
    while (run.item < p.n_items && run.before < run.last) {
        item = item_at<D>(p, run.item++);
        const uint64_t cost = item.cost(), before = run.before;
        run.before += cost;
        if (cost > 0) {
            const int first_part = run.owner(before);
            share = {item.number, uint32_t(max(run.first, before) - before),
                     uint32_t(min(run.last, before + cost) - before), first_part,
                     run.owner(before + cost - 1) - first_part + 1};
            return;
        }
    }
}

}  // namespace zipcache::cuda

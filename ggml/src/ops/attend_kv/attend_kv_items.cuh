#pragma once
// Which items there are, and which part of them a block of threads has. Few items get blocks of their own; where there
// are many, the cost of all is cut into equal runs, one for each block.
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
    const BlockRef * blocks;     // [n_blocks] of the head
    const HeadRecord * records;  // of the head: one in n_kv_heads
    Space k_home, v_home;        // in which its queries are stored and its sums are given; the divisors are the head's
    bool one_space;              // all segments store keys in k_home
    Seen seen;
    int window_units;
};

template <class T>
__device__ __forceinline__ const T * index_at(const IndexHeader * index, uint64_t offset) {
    return reinterpret_cast<const T *>(reinterpret_cast<const uint8_t *>(index) + offset);
}

template <int D>
__device__ __forceinline__ Item item_of(const AttendParams & p, int sequence, int head, int pass) {
    Item item;
    item.number = (sequence * p.a.n_kv_heads + head) * p.n_passes + pass;
    item.head = head;
    item.sequence = p.a.sequences + sequence;
    item.row = sequence * p.a.n_heads + item.head * p.group + pass * kRows;
    item.n_rows = min(kRows, p.group - pass * kRows);
    const auto * index = reinterpret_cast<const IndexHeader *>(item.sequence->index);
    const IndexHeader header = index ? *index : IndexHeader{};  // without waiting for the number of tokens
    item.seen = seen_of(p, *item.sequence);
    item.window_units = window_units(item.seen.last - item.seen.first);
    item.blocks = index ? index_at<BlockRef>(index, header.blocks) + int64_t(item.head) * header.max_blocks : nullptr;
    item.records = index ? index_at<HeadRecord>(index, header.records) + item.head : nullptr;
    const int64_t channel = int64_t(item.head) * D;
    item.k_home = header.k;
    item.v_home = header.v;
    item.k_home.divisor += item.k_home.divisor ? channel : 0;
    item.v_home.divisor += item.v_home.divisor ? channel : 0;
    item.one_space = !index || header.k.same;
    return item;
}

template <int D>
__device__ Item item_at(const AttendParams & p, int number) {
    return item_of<D>(p, number / p.n_passes / p.a.n_kv_heads, number / p.n_passes % p.a.n_kv_heads,
                      number % p.n_passes);
}

// At offsets that don't wait for the header: loads follow one another long enough.
template <int D>
__device__ __forceinline__ Load load_of(const AttendParams & p, const Item & item) {
    Load load = {uint32_t(item.window_units), window_cost(D), 0, 0, nullptr};
    const auto * index = reinterpret_cast<const IndexHeader *>(item.sequence->index);
    if (index && item.seen.last > 0) {
        const IndexLayout l = index_layout(p.a.n_kv_heads, gridDim.x, 0, 0);
        load.start = index_at<uint32_t>(index, l.start) + int64_t(item.head) * (kQuanta + 1);
        load.n_blocks = index_at<uint32_t>(index, l.n_blocks)[item.head];
        load.packed_cost = index_at<uint32_t>(index, l.cost)[item.head];
    }
    return load;
}

// An idle sequence has nothing to do, and nobody else writes its output.
template <int D>
__device__ __forceinline__ void clear_output(const AttendParams & p, const Item & item) {
    wait_for_the_launch_before();
    for (int i = 0; i < item.n_rows * D; ++i) {
        p.a.out[int64_t(item.row) * D + i] = 0;
    }
}

__device__ __forceinline__ bool few_items(const AttendParams & p) {
    return 2 * p.n_items <= int(gridDim.x) && p.n_items <= int(blockDim.x);
}

// The block's own part of few items. work: shared [2, n_items]. All threads call it.
template <int D>
__device__ void find_share(const AttendParams & p, uint32_t * work, Item & item, Share & share) {
    const int own = threadIdx.x;
    Item mine;
    Load load;
    if (own < p.n_items) {
        mine = item_at<D>(p, own);
        load = load_of<D>(p, mine);
        work[own] = load.cost();
        work[p.n_items + own] = load.n_units();
        if (load.cost() == 0 && own % gridDim.x == blockIdx.x) {
            clear_output<D>(p, mine);
        }
    }
    __syncthreads();
    const Few few = {work, work + p.n_items, p.n_items, int(gridDim.x), int(blockDim.x) / kLanes};
    const Share found = few.share_of(blockIdx.x);
    if (own == min(found.item, p.n_items - 1)) {
        item = mine;
        share = found;
        share.turns = found.item < p.n_items ? few.turns_of(found, load) : Turns{};
    }
    __syncthreads();
}

// Whether the index of the only sequence has everybody's parts.
__device__ __forceinline__ bool is_planned(const AttendParams & p) {
    return p.a.n_sequences == 1 && p.n_passes == 1 && p.a.sequences->index;
}

// The block's own part as index_kv planned it. One thread calls it.
template <int D>
__device__ void planned_share(const AttendParams & p, Item & item, Share & share) {
    const auto * index = reinterpret_cast<const IndexHeader *>(p.a.sequences->index);
    const Part part = index_at<Part>(index, index_layout(p.a.n_kv_heads, gridDim.x, 0, 0).parts)[blockIdx.x];
    item = item_of<D>(p, 0, min(int(part.head), p.n_items - 1), 0);  // divisions take their time
    share = {part.head, part.part, part.n_parts, part.others, {}};
    if (item.seen.last == 0) {
        if (int(blockIdx.x) < p.n_items) {
            clear_output<D>(p, item_at<D>(p, blockIdx.x));
        }
        share.item = p.n_items;
    }
    const int window = item.window_units;
    const int first_window = min(int(part.first_window), window), last_window = min(int(part.last_window), window);
    const bool any = last_window > first_window;
    const int first = any ? first_window : window + int(part.first_block), windows = any ? last_window : first;
    const int last = part.last_block > part.first_block ? window + int(part.last_block) : windows;
    share.turns = {first, windows, last, int(blockDim.x) / kLanes};
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
        costs[i] = load_of<D>(p, item).cost();
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
        const Load load = load_of<D>(p, item);
        const uint64_t cost = load.cost(), before = run.before;
        run.before += cost;
        if (cost > 0) {
            const int first = run.owner(before);
            const uint64_t from = max(run.first, before) - before, to = min(run.last, before + cost) - before;
            share = {item.number, int(blockIdx.x) - first, run.owner(before + cost - 1) - first + 1, first + 1,
                     load.turns(uint32_t(from), uint32_t(to), int(blockDim.x) / kLanes)};
            return;
        }
    }
}

}  // namespace zipcache::cuda

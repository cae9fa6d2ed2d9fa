#pragma once
// How the work of attend_kv is shared out. An item is one KV head of one sequence with up to 8 of its query heads; its
// units, those of the window first, are cut into parts, one for a block of threads. The first part's block puts the
// others' sums together.
#include "cuda_index.h"

namespace zipcache::cuda {

constexpr int kWindowTokens = 32;  // of a unit
constexpr int kWindowTurns = 4;    // what it costs, in blocks (measured on an H100)

// What a first part has less than the others, and what a block is taken for: it begins late (measured on an H100).
constexpr uint32_t kLateBlocks = 8;
constexpr int64_t kUsualBytes = 8192;

constexpr uint32_t window_cost(int head_dim) {
    return kWindowTurns * block_cost(kWindowTokens * head_dim * 4);
}

constexpr int window_units(int n_tokens) {
    return (n_tokens + kWindowTokens - 1) / kWindowTokens;
}

// At most: as many as registers and shared memory take.
constexpr int attend_warps(int head_dim) {
    return head_dim >= 256 ? 6 : head_dim >= 128 ? 12 : 16;
}

// Which units of a part are whose: each warp takes one after the other, in turn. Not who is free takes the next one:
// sums must not depend on chance. A unit of the window takes as long as kWindowTurns blocks; in the round in which not
// all warps have one, the others take so many blocks.
struct Turns {
    int first, windows, last;  // units [first, windows) are of the window, [windows, last) blocks
    int n_warps;
    int busy;  // warps of that round

    Turns() = default;
    __device__ __forceinline__ Turns(int first, int windows, int last, int n_warps)
        : first(first),
          windows(windows),
          last(last),
          n_warps(n_warps),
          busy(windows > first ? (windows - first) % n_warps : 0) {}

    __device__ __forceinline__ int early() const { return (n_warps - busy) * kWindowTurns; }
    __device__ __forceinline__ int first_block(int warp) const {
        return windows + (warp < busy ? early() + warp : warp - busy);
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
        const int next = unit + n_warps - busy;
        return next - windows < early() ? next : windows + early() + warp;
    }
};

// What an item costs.
struct Load {
    uint32_t window_units, window_cost, n_blocks, packed_cost;
    const uint32_t * start;  // [kQuanta + 1] of the head

    __device__ __forceinline__ uint32_t cost() const { return window_units * window_cost + packed_cost; }
    __device__ __forceinline__ int n_units() const { return window_units + n_blocks; }

    // The first unit that begins at or behind a place in the cost.
    __device__ __forceinline__ int unit_at(uint32_t at) const {
        if (at >= cost()) {
            return n_units();
        }
        const uint32_t window = window_units * window_cost;
        if (at < window || n_blocks == 0) {
            return int((at + window_cost - 1) / window_cost);
        }
        // roughly: who begins there and who ends there round alike
        const auto quantum = uint32_t(float(at - window) * __fdividef(float(kQuanta), float(packed_cost)));
        return int(window_units + start[min(quantum, uint32_t(kQuanta))]);
    }

    __device__ __forceinline__ Turns turns(uint32_t from, uint32_t to, int n_warps) const {
        const int first = unit_at(from), last = unit_at(to);
        return {first, min(max(first, int(window_units)), last), last, n_warps};
    }
};

// A block's part of an item.
struct Share {
    int item;           // n_items and more: there is none
    int part, n_parts;  // of the item's
    int others;         // the block that has the second part; those behind it have the further ones
    Turns turns;

    __device__ __forceinline__ bool is_first() const { return part == 0; }
};

// Where few items get blocks of their own, as many as its cost asks for: a block that worked on two would end last by
// all that an item takes whatever its length. The last blocks have the first parts. They are the last to begin, for the
// first parts of the launch before are the last to end and the op before that has SMs of its own; and they have time,
// for they wait for the others, and have less to do where the window is not full.
struct Few {
    const uint32_t *cost, *n_units;  // [n_items]
    int n_items, n_blocks, n_warps;  // blocks of threads, and their warps

    // Of the blocks that are spare after one for each, its share; no more than have work for half of their warps, and
    // one where its warps do it at one go.
    __device__ __forceinline__ int blocks_for(int item, float spare_by_cost) const {
        const int few = max(1, n_warps / 2), units = int(n_units[item]);
        const int most = units <= n_warps ? 1 : (units + few - 1) / few;
        return cost[item] > 0 ? min(most, 1 + int(float(cost[item]) * spare_by_cost)) : 0;
    }

    // A block's, but for its turns.
    __device__ __forceinline__ Share share_of(int block) const {
        float total = 0;
        for (int i = 0; i < n_items; ++i) {
            total += float(cost[i]);
        }
        const float spare_by_cost = total > 0 ? __fdividef(float(n_blocks - n_items), total) * (1 - 1e-5f) : 0;
        const int own = block - (n_blocks - n_items);  // the item whose first part it has
        for (int i = 0, others = 0; i < n_items; ++i) {
            const int n = blocks_for(i, spare_by_cost);
            if (n > 0 && i == own) {
                return {i, 0, n, others, {}};
            }
            if (own < 0 && block < others + n - 1) {
                return {i, block - others + 1, n, others, {}};
            }
            others += max(0, n - 1);
        }
        return {n_items, 0, 0, 0, {}};
    }

    // Even parts of what the item costs and of `late` before it, which the first part leaves out.
    __device__ __forceinline__ Turns turns_of(const Share & share, const Load & load) const {
        const uint32_t late = min(load.cost() / share.n_parts, kLateBlocks * block_cost(kUsualBytes));
        const uint32_t even = (load.cost() + late) / share.n_parts, odd = (load.cost() + late) % share.n_parts;
        const uint32_t part = share.part;
        const uint32_t first = even * part + min(odd, part), last = even * (part + 1) + min(odd, part + 1);
        return load.turns(part == 0 ? 0 : first - late, last - late, n_warps);
    }
};

}  // namespace zipcache::cuda

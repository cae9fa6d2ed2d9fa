#pragma once
// Which token stands at which place of a segment.
#include "metal/segment.h"

namespace zipcache {
namespace gpu {

// [n_orders, n_tokens] u8, or the tags of a segment.
inline int tier_at(constant OrderParams & p, device const Format & f, int order, int token) {
    int tier = 0;
    if (p.tier) {
        tier = read_at<uchar>(p.tier)[ulong(order) * p.n_tokens + token];
    } else if (f.tag_bits > 0) {
        device const uchar * tags = read_at<uchar>(p.segment) + f.tags + order * tag_bytes(f, p.n_tokens);
        tier = tags[token * f.tag_bits / 8] >> (token * f.tag_bits % 8) & ((1 << f.tag_bits) - 1);
    }
    return min(tier, f.n_tiers - 1);
}

// A threadgroup an order; a thread a run of tokens.
template <int Threads>
[[kernel]] void order_tokens(KERNEL_ARGUMENTS(OrderParams)) {
    device const Format & f = *read_at<Format>(p.format);
    threadgroup uint * before = reinterpret_cast<threadgroup uint *>(shared);
    threadgroup uint * total = before + kMaxTiers * Threads;
    const int order = int(group.x), index = int(thread_index);
    const int share = (p.n_tokens + Threads - 1) / Threads;
    const int first = min(p.n_tokens, index * share), last = min(p.n_tokens, first + share);
    for (int t = 0; t < f.n_tiers; ++t) {
        before[t * Threads + index] = 0;
    }
    for (int i = first; i < last; ++i) {
        ++before[tier_at(p, f, order, i) * Threads + index];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (index < f.n_tiers) {
        uint sum = 0;
        for (int i = 0; i < Threads; ++i) {
            const uint own = before[index * Threads + i];
            before[index * Threads + i] = sum;
            sum += own;
        }
        total[index] = sum;
        write_at<uint>(p.counts)[order * f.n_tiers + index] = sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = first; i < last; ++i) {
        const int tier = tier_at(p, f, order, i);
        if (evicts(f, tier)) {
            continue;
        }
        uint place = 0;
        for (int t = 0; t < tier; ++t) {
            place += tier_places(f, t, total[t]);
        }
        const uint number = before[tier * Threads + index]++;
        place += number / f.group * steps_of(f.group) * kStep + number % f.group;
        write_at<uint>(p.token)[ulong(order) * p.max_places + place] = uint(i);
    }
}

// A thread a place; grid.y: the KV head.
template <int Threads>
[[kernel]] void positions(KERNEL_ARGUMENTS(PositionParams)) {
    device const Format & f = *read_at<Format>(p.format);
    const int place = int(group.x * Threads + thread_index), head = int(group.y);
    if (place < p.max_places) {
        const ulong order = f.n_orders == 1 ? 0 : head;
        write_at<ushort>(p.position)[ulong(head) * p.max_places + place] =
            ushort(read_at<uint>(p.token)[order * p.max_places + place]);
    }
}

}  // namespace gpu
}  // namespace zipcache

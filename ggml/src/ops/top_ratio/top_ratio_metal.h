#pragma once
// Which tokens are the most salient, by one threadgroup a ranking: the bits of floats that are not negative rise with
// them, so the n_salient-th is found 8 bits at a time, and of those that equal it the first ones are taken.
//
// Bytes: five times 4 n read, n written. One threadgroup cannot fill a GPU's bandwidth (expected: some 10 GB/s, 60 us
// for 32,000 tokens); it runs once per compression and layer. Threadgroup memory: under 1.2 KiB.
#include "metal/memory.h"

namespace zipcache {
namespace gpu {

template <int Threads>
[[kernel]] void top_ratio(KERNEL_ARGUMENTS(RankParams)) {
    constexpr int n_simds = Threads / kLanes;
    threadgroup uint * bins = reinterpret_cast<threadgroup uint *>(shared);
    threadgroup uint * counts = bins + kBins;
    threadgroup uint * state = counts + n_simds;
    const int index = int(thread_index), simd = int(simd_index);
    device const uint * saliency = read_at<uint>(p.saliency) + ulong(group.x) * p.n;
    device uchar * tier = write_at<uchar>(p.tier) + ulong(group.x) * p.n;
    if (index == 0) {
        state[0] = 0;
        state[1] = uint(p.n_salient);
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = index; i < kBins; i += Threads) {
            bins[i] = 0;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const uint above = shift == 24 ? 0u : ~0u << (shift + 8), found = state[0];
        for (int t = index; t < p.n; t += Threads) {
            const uint bits = saliency[t];
            if ((bits & above) == found) {
                atomic_fetch_add_explicit(reinterpret_cast<threadgroup atomic_uint *>(bins + (bits >> shift & 255u)),
                                          1u, memory_order_relaxed);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (index == 0) {
            int bin = kBins - 1;
            for (; bin > 0 && state[1] > bins[bin]; --bin) {
                state[1] -= bins[bin];
            }
            state[0] |= uint(bin) << shift;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    const uint found = state[0], left = state[1];
    uint taken = 0;  // of those that equal it
    for (int start = 0; start < p.n; start += Threads) {
        const int t = start + index;
        const uint bits = t < p.n ? saliency[t] : 0u;
        const uint equal = t < p.n && bits == found ? 1u : 0u;
        const uint in_simd = simd_prefix_exclusive_sum(equal), of_simd = simd_sum(equal);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (lane_index == 0) {
            counts[simd] = of_simd;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint before = taken + in_simd;
        for (int i = 0; i < n_simds; ++i) {
            before += i < simd ? counts[i] : 0u;
            taken += counts[i];
        }
        if (t < p.n) {
            tier[t] = uchar(p.n_salient > 0 && (bits > found || (equal && before < left)) ? 0 : 1);
        }
    }
}

}  // namespace gpu
}  // namespace zipcache

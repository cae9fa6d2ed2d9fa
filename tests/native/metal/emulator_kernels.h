#pragma once
#include <metal_simdgroup_matrix>

#include "metal/memory.h"

namespace zipcache {
namespace gpu {

enum class Fault {
    none,
    no_barrier,
    simd_barrier,
    device_barrier,
    some_threads,
    beyond_shared,
    unwritten,
    beyond_buffer,
    misaligned,
    same_place,
    divergent,
};

struct NeighbourParams {
    Address from, to;  // [64] u32
};

// to[i] = from[i + 1], by 64 threads, through threadgroup memory.
template <Fault F>
[[kernel]] void neighbour(KERNEL_ARGUMENTS(NeighbourParams)) {
    threadgroup uint * all = reinterpret_cast<threadgroup uint *>(shared);
    const int i = int(thread_index);
    const int from = F == Fault::beyond_buffer ? i + 1 : i;
    if (F != Fault::unwritten || i != 7) {
        all[F == Fault::beyond_shared ? i + 1 : i] = read_at<uint>(p.from)[from];
    }
    if (F == Fault::some_threads && i >= 40) {
        return;
    }
    if (F == Fault::simd_barrier) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
    } else if (F == Fault::device_barrier) {
        threadgroup_barrier(mem_flags::mem_device);
    } else if (F != Fault::no_barrier) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    uint x = all[(i + 1) % 64];
    if (F == Fault::divergent && i % 2) {
        x = simd_max(x);
    }
    const Address to = p.to + (F == Fault::misaligned ? 2 : 0);
    write_at<uint>(to)[F == Fault::same_place ? i / 2 : i] = x;
}

// to [8, 8] f32 = x x, x [8, 8] f16, by one SIMD-group, each element stored by some lane.
template <bool Barrier>
[[kernel]] void product(KERNEL_ARGUMENTS(NeighbourParams)) {
    threadgroup half * x = reinterpret_cast<threadgroup half *>(shared);
    for (int i = int(lane_index); i < 64; i += 32) {
        x[i] = read_at<half>(p.from)[i];
    }
    if (Barrier) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    simdgroup_half8x8 a;
    simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_load(a, x, 8);
    simdgroup_multiply_accumulate(c, a, a, c);
    simdgroup_store(c, write_at<float>(p.to), 8);
}

// to[0] += 1 by all threads of all threadgroups.
template <bool Atomics>
[[kernel]] void count(KERNEL_ARGUMENTS(NeighbourParams)) {
    if (Atomics) {
        atomic_fetch_add_explicit(write_at<atomic_uint>(p.to), 1u, memory_order_relaxed);
    } else if (thread_index == 0) {
        ++*write_at<uint>(p.to);
    }
}

}  // namespace gpu
}  // namespace zipcache

#pragma once
#include <metal_stdlib>

// All kernels take the same: their parameters, their threadgroup memory, and who they are.
#define KERNEL_ARGUMENTS(Params)                                                                         \
    constant Params &p [[buffer(0)]], threadgroup uchar *shared [[threadgroup(0)]],                      \
        uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]], \
        uint simd_index [[simdgroup_index_in_threadgroup]], uint lane_index [[thread_index_in_simdgroup]]

// Arrays that loops go through are registers only where the loops are unrolled.
#define UNROLL _Pragma("clang loop unroll(full)")

// A function of the library: an instance of a kernel template, under a name of its own.
#define INSTANTIATE_KERNEL(name, ...) template [[host_name(name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;

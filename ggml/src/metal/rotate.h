#pragma once
#include "metal/memory.h"

namespace zipcache {
namespace gpu {

// x [n, stride] f32 <- rows times the matrix that `rotate` means, by one SIMD-group. The same additions in the same
// order as transform.h, so that codes come out the same.
inline void rotate_rows(threadgroup float * x, int n, int stride, int dim, int lane) {
    const int size = dim & -dim;
    for (int span = 1; span < size; span *= 2) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = lane; i < n * (dim / 2); i += kLanes) {
            const int pair = i % (dim / 2);
            threadgroup float * low = x + i / (dim / 2) * stride + pair / span * 2 * span + pair % span;
            const float a = low[0], b = low[span];
            low[0] = a + b;
            low[span] = a - b;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    const float scale = 1.0f / sqrt(float(size));
    for (int i = lane; i < n * dim; i += kLanes) {
        x[i / dim * stride + i % dim] *= scale;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

}  // namespace gpu
}  // namespace zipcache

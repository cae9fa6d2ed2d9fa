#pragma once
// The instructions of sm_80 and later that CUDA C++ has no word for.
#include <cuda_fp16.h>

#include <cstdint>

namespace zipcache::cuda {

// c [16, 8] += a [16, 32] u8 x b [32, 8] s8. Lane l: a rows l / 4 and + 8, channels 4 (l % 4) to + 3, then those 16 on;
// b column l / 4, likewise; c columns 2 (l % 4) and + 1.
__device__ __forceinline__ void mma_k32(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with nothing to add to.
__device__ __forceinline__ void mma_k32_first(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                              uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(0));
}

// The same with 16 in the place of 32.
__device__ __forceinline__ void mma_k16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// An 8 x 8 matrix of 16 bits each; lane l has of row l / 4 the columns 2 (l % 4) and + 1.
__device__ __forceinline__ uint32_t transposed(uint32_t x) {
    uint32_t y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// c [16, 8] f32 += a [16, 16] f16 x b [16, 8] f16
__device__ __forceinline__ void mma_f16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                        uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t shared_address(const void * p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four 8 x 8 matrices of f16; lane l gives the address of row l % 8 of matrix l / 8. The first one transposes them.
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row));
}

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void * row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)));
}

__device__ __forceinline__ void copy_async(uint32_t to, const void * from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// Barriers of a block that n threads meet at, in whole warps: some of them wait there, others only say that they came.
__device__ __forceinline__ void wait_at(int barrier, int n) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(n) : "memory");
}

__device__ __forceinline__ void pass_by(int barrier, int n) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(n) : "memory");
}

// A line of 128 bytes on its way to the L2 cache.
__device__ __forceinline__ void fetch_line(const void * at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

// Copies that one thread starts and that come in whole, where the device has them. `arrival` is a barrier of 8 bytes in
// shared memory whose phases end with the bytes it was told to expect. Multiples of 16 bytes.
#if __CUDA_ARCH__ >= 900
constexpr bool kBulkCopies = true;

__device__ __forceinline__ void make_arrival(uint32_t arrival) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(arrival) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void expect_bytes(uint32_t arrival, uint32_t n) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(arrival), "r"(n) : "memory");
}

__device__ __forceinline__ void copy_bulk(uint32_t to, const void * from, uint32_t n, uint32_t arrival) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(n), "r"(arrival)
                 : "memory");
}

// The same of what nobody reads again: it is the first to leave the L2 cache, and other things, instructions among
// them, stay there.
__device__ __forceinline__ void copy_bulk_once(uint32_t to, const void * from, uint32_t n, uint32_t arrival) {
    asm volatile(
        "{\n"
        ".reg .b64 policy;\n"
        "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], "
        "policy;\n"
        "}\n" ::"r"(to),
        "l"(from), "r"(n), "r"(arrival)
        : "memory");
}

// Waits for the phase of that parity.
__device__ __forceinline__ void wait_arrival(uint32_t arrival, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n"
        "@!there bra again;\n"
        "}\n" ::"r"(arrival),
        "r"(parity)
        : "memory");
}

// What this thread wrote to shared memory comes before what copies write there.
__device__ __forceinline__ void before_bulk_copies() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#else
constexpr bool kBulkCopies = false;
__device__ __forceinline__ void make_arrival(uint32_t) {}
__device__ __forceinline__ void expect_bytes(uint32_t, uint32_t) {}
__device__ __forceinline__ void copy_bulk(uint32_t, const void *, uint32_t, uint32_t) {}
__device__ __forceinline__ void copy_bulk_once(uint32_t, const void *, uint32_t, uint32_t) {}
__device__ __forceinline__ void wait_arrival(uint32_t, uint32_t) {}
__device__ __forceinline__ void before_bulk_copies() {}
#endif

// Words that blocks of a launch hand to one another: each by itself comes whole, in no order.
__device__ __forceinline__ void store_relaxed(float * at, const float4 & x) {
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(at), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w)
                 : "memory");
}

__device__ __forceinline__ void store_relaxed(float * at, const float2 & x) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1,%2};" ::"l"(at), "f"(x.x), "f"(x.y) : "memory");
}

// Into x if `wanted`, without a branch: many are on their way at once.
__device__ __forceinline__ void load_relaxed(float4 & x, const float * at, bool wanted) {
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.u32 wanted, %5, 0;\n"
        "@wanted ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];\n"
        "}\n"
        : "+f"(x.x), "+f"(x.y), "+f"(x.z), "+f"(x.w)
        : "l"(at), "r"(uint32_t(wanted))
        : "memory");
}

__device__ __forceinline__ void load_relaxed(float2 & x, const float * at, bool wanted) {
    asm volatile(
        "{\n"
        ".reg .pred wanted;\n"
        "setp.ne.u32 wanted, %3, 0;\n"
        "@wanted ld.relaxed.gpu.global.v2.f32 {%0,%1}, [%2];\n"
        "}\n"
        : "+f"(x.x), "+f"(x.y)
        : "l"(at), "r"(uint32_t(wanted))
        : "memory");
}

__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits for all but the newest N groups of this thread.
template <int N>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t half_pair(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

// What f16 leaves of two floats, as f16.
__device__ __forceinline__ uint32_t half_rest(float low, float high, uint32_t rounded) {
    const float2 r = __half22float2(*reinterpret_cast<const __half2 *>(&rounded));
    return half_pair(low - r.x, high - r.y);
}

// Over the four lanes of a row of a C fragment.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ int quad_sum(int x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

// Lets the next launch of the stream begin, if it was made to begin early. What it needs of this one it waits for.
__device__ __forceinline__ void let_the_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits for the end of the launch before this one, whose stores are then seen.
__device__ __forceinline__ void wait_for_the_launch_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace zipcache::cuda

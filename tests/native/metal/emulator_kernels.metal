// Small kernels, right and broken, by which the emulator is tested.
#include "emulator_kernels.h"

INSTANTIATE_KERNEL("neighbour_with_barrier", zipcache::gpu::neighbour<zipcache::gpu::Fault::none>)
INSTANTIATE_KERNEL("neighbour_without_barrier", zipcache::gpu::neighbour<zipcache::gpu::Fault::no_barrier>)
INSTANTIATE_KERNEL("neighbour_with_simdgroup_barrier", zipcache::gpu::neighbour<zipcache::gpu::Fault::simd_barrier>)
INSTANTIATE_KERNEL("neighbour_with_barrier_of_other_memory", zipcache::gpu::neighbour<zipcache::gpu::Fault::device_barrier>)
INSTANTIATE_KERNEL("neighbour_with_barrier_for_some", zipcache::gpu::neighbour<zipcache::gpu::Fault::some_threads>)
INSTANTIATE_KERNEL("neighbour_out_of_threadgroup_memory", zipcache::gpu::neighbour<zipcache::gpu::Fault::beyond_shared>)
INSTANTIATE_KERNEL("neighbour_unwritten", zipcache::gpu::neighbour<zipcache::gpu::Fault::unwritten>)
INSTANTIATE_KERNEL("neighbour_beyond_buffer", zipcache::gpu::neighbour<zipcache::gpu::Fault::beyond_buffer>)
INSTANTIATE_KERNEL("neighbour_misaligned", zipcache::gpu::neighbour<zipcache::gpu::Fault::misaligned>)
INSTANTIATE_KERNEL("neighbour_same_place", zipcache::gpu::neighbour<zipcache::gpu::Fault::same_place>)
INSTANTIATE_KERNEL("neighbour_divergent", zipcache::gpu::neighbour<zipcache::gpu::Fault::divergent>)
INSTANTIATE_KERNEL("product", zipcache::gpu::product<true>)
INSTANTIATE_KERNEL("product_without_barrier", zipcache::gpu::product<false>)
INSTANTIATE_KERNEL("count", zipcache::gpu::count<true>)
INSTANTIATE_KERNEL("count_without_atomics", zipcache::gpu::count<false>)

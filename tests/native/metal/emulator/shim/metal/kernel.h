#pragma once
// In the place of ggml/src/metal/kernel.h: an instance goes to the emulator's list.
#include <emulated.h>
#include <metal_stdlib>

namespace emulator {

template <class Params>
void call(const void * function, const void * params, uint8_t * shared, GroupPosition group, uint32_t index) {
    using Function = void (*)(const Params &, uint8_t *, uint3, uint, uint, uint);
    reinterpret_cast<Function>(reinterpret_cast<uintptr_t>(function))(*static_cast<const Params *>(params), shared,
                                                                      {group.x, group.y, group.z}, index,
                                                                      index / kLanes, index % kLanes);
}

template <class Params>
Registration registered(const char * name, void (*function)(const Params &, uint8_t *, uint3, uint, uint, uint)) {
    return {name, call<Params>, reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(function))};
}

}  // namespace emulator

#ifdef EMULATOR_ADDRESS_SPACES
#define INSTANTIATE_KERNEL(name, ...) template decltype(__VA_ARGS__) __VA_ARGS__;
#else
#define INSTANTIATE_NAME_(line) instance_##line
#define INSTANTIATE_NAME(line) INSTANTIATE_NAME_(line)
#define INSTANTIATE_KERNEL(name, ...) \
    static const emulator::Registration INSTANTIATE_NAME(__LINE__) = emulator::registered(name, &__VA_ARGS__);
#endif
#define KERNEL_ARGUMENTS(Params) \
    constant Params &p, threadgroup uchar *shared, uint3 group, uint thread_index, uint simd_index, uint lane_index
#define UNROLL

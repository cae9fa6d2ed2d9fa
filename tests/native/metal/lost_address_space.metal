// Must not compile where address spaces are checked.
#include "metal/memory.h"

namespace zipcache {
namespace gpu {

inline uint first(thread const uint * x) {
    return x[0];
}

template <int Threads>
[[kernel]] void lost(KERNEL_ARGUMENTS(FillParams)) {
    write_at<uint>(p.to)[0] = first(read_at<uint>(p.to));
}

}  // namespace gpu
}  // namespace zipcache

INSTANTIATE_KERNEL("lost", zipcache::gpu::lost<1>)

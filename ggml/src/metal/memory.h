#pragma once
#include "metal/kernel.h"
// after it, for uint64_t
#include "metal/abi.h"

namespace zipcache {
namespace gpu {

using namespace metal;
using namespace lanes;
using namespace metal_abi;

template <class T>
device const T * read_at(Address at) {
    return reinterpret_cast<device const T *>(at);
}

template <class T>
device T * write_at(Address at) {
    return reinterpret_cast<device T *>(at);
}

}  // namespace gpu
}  // namespace zipcache

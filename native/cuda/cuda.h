#pragma once
#include <memory>
#include <string>
#include <vector>

#include "kv/codec.h"

namespace zipcache {

// CUDA's devices, by a library of ours that is loaded when they are first asked for (cuda_library.cpp), or none, where
// this build has none (no_cuda.cpp).
struct CudaDevices {
    std::vector<std::string> descriptions;  // of cuda:0, cuda:1, ...
    std::string missing;                    // why there are none, or empty
};

const CudaDevices & cuda_devices();
// One of them. Throws ModelError when it cannot be started.
std::unique_ptr<Device> open_cuda_device(int index);
// What make_codec() (kv/codec.h) gives for such a device.
std::shared_ptr<const SegmentCodec> make_cuda_codec(Device & device, const std::shared_ptr<const Policy> & policy,
                                                    const HParams & h, OutputNorms & norms);

}  // namespace zipcache

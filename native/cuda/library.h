#pragma once
#include <string>
#include <vector>

#include "kv/codec.h"

namespace zipcache {

// What the CUDA library tells of itself: its one symbol, kCudaLibrarySymbol, is a function that returns this.
struct CudaLibrary {
    std::vector<std::string> (*descriptions)();
    std::unique_ptr<Device> (*open)(int index);
    std::shared_ptr<const SegmentCodec> (*codec)(Device & device, std::shared_ptr<const Policy> policy,
                                                 const HParams & h, OutputNorms & norms);
};

using CudaLibraryFunction = const CudaLibrary * (*)();
constexpr const char * kCudaLibrarySymbol = "zipcache_cuda_library";

}  // namespace zipcache

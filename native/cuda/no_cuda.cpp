#include "common/error.h"
#include "cuda/cuda.h"

namespace zipcache {

const CudaDevices & cuda_devices() {
    static const CudaDevices none = {{}, "this build has no CUDA (pip install . -C cmake.define.ZIPCACHE_CUDA=ON)"};
    return none;
}

std::unique_ptr<Device> open_cuda_device(int) {
    throw ModelError(cuda_devices().missing);
}

std::shared_ptr<const SegmentCodec> make_cuda_codec(Device &, const std::shared_ptr<const Policy> &, const HParams &,
                                                    OutputNorms &) {
    throw ModelError(cuda_devices().missing);
}

}  // namespace zipcache

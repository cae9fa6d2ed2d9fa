// The one symbol of libzipcache-cuda: cuda/library.h.
#include "cuda/library.h"
#include "cuda/codec.h"
#include "ggml-cuda.h"

namespace zipcache::cuda {
namespace {

std::vector<std::string> descriptions() {
    std::vector<std::string> found;
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {  // no driver; ggml would say so on stderr
        (void) cudaGetLastError();
        return found;
    }
    for (int i = 0; i < n; ++i) {
        char text[256];
        ggml_backend_cuda_get_device_description(i, text, sizeof text);
        found.emplace_back(text);
    }
    return found;
}

std::unique_ptr<Device> open(int index) {
    return std::make_unique<CudaDevice>(index);
}

std::shared_ptr<const SegmentCodec> codec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h,
                                          OutputNorms & norms) {
    return std::make_shared<CudaCodec>(static_cast<CudaDevice &>(device), std::move(policy), h, norms);
}

const CudaLibrary kLibrary = {descriptions, open, codec};

}  // namespace
}  // namespace zipcache::cuda

extern "C" __attribute__((visibility("default"))) const zipcache::CudaLibrary * zipcache_cuda_library() {
    return &zipcache::cuda::kLibrary;
}

#include "cuda/cuda.h"
#include "kv/host_codec.h"

namespace zipcache {

std::shared_ptr<const SegmentCodec> make_codec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h,
                                               OutputNorms & norms) {
    if (!device.is_host()) {
        return make_cuda_codec(device, policy, h, norms);
    }
    return std::make_shared<HostCodec>(device, std::move(policy), h, norms);
}

}  // namespace zipcache

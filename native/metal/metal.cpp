#include "metal/metal.h"

#include "common/error.h"
#include "metal/codec.h"

namespace zipcache {

const MetalDevices & metal_devices() {
    static const MetalDevices found = [] {
        const metal::FoundGpu gpu = metal::find_gpu();
        return gpu.usable ? MetalDevices{gpu.what, {}} : MetalDevices{{}, gpu.what};
    }();
    return found;
}

std::unique_ptr<Device> open_metal_device() {
    if (metal_devices().description.empty()) {
        throw ModelError("there is no Metal device: " + metal_devices().missing);
    }
    return std::make_unique<metal::MetalDevice>(metal::open_gpu());
}

std::shared_ptr<const SegmentCodec> make_metal_codec(Device & device, const std::shared_ptr<const Policy> & policy,
                                                     const HParams & h, OutputNorms & norms) {
    return std::make_shared<metal::MetalCodec>(static_cast<metal::MetalDevice &>(device), policy, h, norms);
}

}  // namespace zipcache

#include "common/error.h"
#include "metal/metal.h"

namespace zipcache {

const MetalDevices & metal_devices() {
    static const MetalDevices none = {{},
                                      "this build has no Metal (on macOS: pip install ., without ZIPCACHE_METAL=OFF)"};
    return none;
}

std::unique_ptr<Device> open_metal_device() {
    throw ModelError(metal_devices().missing);
}

std::shared_ptr<const SegmentCodec> make_metal_codec(Device &, const std::shared_ptr<const Policy> &, const HParams &,
                                                     OutputNorms &) {
    throw ModelError(metal_devices().missing);
}

}  // namespace zipcache

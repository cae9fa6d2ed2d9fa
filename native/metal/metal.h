#pragma once
#include <memory>
#include <string>

#include "kv/codec.h"

namespace zipcache {

// The system's Metal device, or none, where this build has none (no_metal.cpp).
struct MetalDevices {
    std::string description;  // of "metal", or empty
    std::string missing;      // why there is none, or empty
};

const MetalDevices & metal_devices();
// Throws ModelError when it cannot be started.
std::unique_ptr<Device> open_metal_device();
// What make_codec() (kv/codec.h) gives for such a device.
std::shared_ptr<const SegmentCodec> make_metal_codec(Device & device, const std::shared_ptr<const Policy> & policy,
                                                     const HParams & h, OutputNorms & norms);

}  // namespace zipcache

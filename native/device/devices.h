#pragma once
#include <memory>
#include <string>

#include "device/device.h"

namespace zipcache {

// The device of this name: null for the host, which an Executor has anyway. "cpu", "cuda" (the first GPU), "cuda:N",
// "metal", or "auto": a GPU where there is one. Throws ArgumentError that lists what is there.
std::unique_ptr<Device> open_device(const std::string & name);

}  // namespace zipcache

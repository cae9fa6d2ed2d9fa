#include "device/devices.h"

#include "common/error.h"
#include "cuda/cuda.h"
#include "metal/metal.h"

namespace zipcache {
namespace {

// N of "cuda:N", 0 of "cuda"; -1 for anything else.
int cuda_index(const std::string & name) {
    constexpr size_t kPrefix = 5, kMostDigits = 3;  // "cuda:"
    if (name == "cuda") {
        return 0;
    }
    const bool prefixed = name.compare(0, kPrefix, "cuda:") == 0;
    const std::string digits = prefixed ? name.substr(kPrefix) : "";
    if (digits.empty() || digits.size() > kMostDigits || digits.find_first_not_of("0123456789") != std::string::npos) {
        return -1;
    }
    return std::stoi(digits);
}

[[noreturn]] void refuse(const std::string & name) {
    const CudaDevices & cuda = cuda_devices();
    std::string accepted = "auto, cpu";
    for (size_t i = 0; i < cuda.descriptions.size(); ++i) {
        accepted += ", cuda:" + std::to_string(i) + " (" + cuda.descriptions[i] + ")";
    }
    const MetalDevices & metal = metal_devices();
    if (!metal.description.empty()) {
        accepted += ", metal (" + metal.description + ")";
    }
    std::string why = cuda.missing.empty() ? "" : "; no CUDA device: " + cuda.missing;
    why += metal.missing.empty() ? "" : "; no Metal device: " + metal.missing;
    throw ArgumentError("device is '" + name + "'; accepted: " + accepted + why);
}

}  // namespace

std::unique_ptr<Device> open_device(const std::string & name) {
    if (name == "cpu") {
        return nullptr;
    }
    const bool has_metal = !metal_devices().description.empty();
    if (has_metal && (name == "metal" || name == "auto")) {
        return open_metal_device();
    }
    const auto n_cuda = static_cast<int>(cuda_devices().descriptions.size());
    const int index = name == "auto" ? 0 : cuda_index(name);
    if (index >= 0 && index < n_cuda) {
        return open_cuda_device(index);
    }
    if (name != "auto") {
        refuse(name);
    }
    return nullptr;
}

}  // namespace zipcache

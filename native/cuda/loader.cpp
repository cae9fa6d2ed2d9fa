// Everything that needs CUDA is in a library of its own, which is loaded when a CUDA device is first asked for. So this
// module loads on machines without a driver, and without CUDA's own libraries, as ggml's loadable backends would; those
// would make the CPU backend loadable too, and we call into that directly.
#include "cuda/library.h"

#include <dlfcn.h>

#include "common/error.h"
#include "cuda/cuda.h"

namespace zipcache {
namespace {

constexpr const char * kFile = "libzipcache-cuda.so";  // found by the run path of whoever holds this code

struct Loaded {
    const CudaLibrary * library = nullptr;
    CudaDevices devices;
};

Loaded load() {
    Loaded loaded;
    void * handle = dlopen(kFile, RTLD_NOW | RTLD_LOCAL);  // never closed: CUDA does not bear it
    void * symbol = handle ? dlsym(handle, kCudaLibrarySymbol) : nullptr;
    if (!symbol) {
        const char * error = dlerror();
        loaded.devices.missing = std::string("CUDA could not be loaded: ") + (error ? error : kFile);
        return loaded;
    }
    loaded.library = reinterpret_cast<CudaLibraryFunction>(symbol)();
    loaded.devices.descriptions = loaded.library->descriptions();
    if (loaded.devices.descriptions.empty()) {
        loaded.devices.missing = "CUDA finds no GPU";
    }
    return loaded;
}

const Loaded & loaded() {
    static const Loaded once = load();
    return once;
}

}  // namespace

const CudaDevices & cuda_devices() {
    return loaded().devices;
}

std::unique_ptr<Device> open_cuda_device(int index) {
    const Loaded & cuda = loaded();
    if (index < 0 || index >= static_cast<int>(cuda.devices.descriptions.size())) {
        throw ModelError("there is no cuda:" + std::to_string(index) + " (" + cuda.devices.missing + ")");
    }
    return cuda.library->open(index);
}

std::shared_ptr<const SegmentCodec> make_cuda_codec(Device & device, const std::shared_ptr<const Policy> & policy,
                                                    const HParams & h, OutputNorms & norms) {
    return loaded().library->codec(device, policy, h, norms);
}

}  // namespace zipcache

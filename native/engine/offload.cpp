#include "engine/offload.h"

#include <algorithm>

#include "common/error.h"
#include "device/devices.h"
#include "engine/room.h"
#include "graph/computable.h"

namespace zipcache {
namespace {

constexpr size_t kReserve = size_t(256) << 20;  // activations, and what CUDA itself takes
constexpr int64_t kUsual = 8192;                // tokens of an uncompressed session that a split leaves room for

// What the last layers of a model take of a device.
class Demand {
  public:
    Demand(std::shared_ptr<const GgufFile> file, Device & device)
        : file_(std::move(file)), device_(device), n_layers_(plan_network(file_, {nullptr, false})->h.n_layers) {}

    int n_layers() const { return n_layers_; }

    // Why the device does not compute the last n layers, or empty.
    std::string not_computed(int n) const {
        const std::string missing = zipcache::not_computed(*plan(n), device_, n_layers_ - n);
        return missing.empty() ? "" : device_.name() + " does not compute " + missing;
    }
    size_t bytes(int n) const { return plan(n)->storage->device_bytes() + kReserve; }
    size_t bytes_with_session(int n) const {
        const auto network = plan(n);
        const HParams & h = network->h;
        KvOptions f16;
        f16.policy = "f16";
        const KvStage stage = {{&device_, n_layers_ - n, n_layers_}, nullptr};
        return network->storage->device_bytes() + kReserve +
               session_bytes(h, *make_policy(f16, h), stage, std::min<int64_t>(kUsual, h.n_ctx_train));
    }

  private:
    std::unique_ptr<Network> plan(int n) const { return plan_network(file_, {&device_, false, n_layers_ - n}); }

    std::shared_ptr<const GgufFile> file_;
    Device & device_;
    int n_layers_;
};

// The most layers, up to `most`, that fit.
template <class Bytes>
int fitting(int most, size_t free, const Bytes & bytes) {
    int n = most;
    while (n > 0 && bytes(n) > free) {
        --n;
    }
    return n;
}

std::string too_much(const std::string & what, size_t bytes, const Device & device) {
    const FreeMemory memory = device.free_memory();
    return what + std::to_string(bytes >> 20) + " MiB on " + device.name() + ", which has " +
           std::to_string(memory.free >> 20) + " of " + std::to_string(memory.total >> 20) + " MiB free";
}

// Throws where the last n layers do not run there.
void check_wanted(const Demand & demand, const Device & device, int n) {
    const std::string missing = demand.not_computed(n);
    if (!missing.empty()) {
        throw ModelError(missing + "; accepted: device='cpu'");
    }
    const size_t free = device.free_memory().free;
    auto bytes = [&](int some) { return demand.bytes(some); };
    if (bytes(n) > free) {
        throw ModelError(too_much("gpu_layers is " + std::to_string(n) + ", which needs ", bytes(n), device) +
                         "; accepted: gpu_layers up to " + std::to_string(fitting(n - 1, free, bytes)));
    }
}

}  // namespace

Offload choose_offload(const ModelOptions & options, const std::shared_ptr<const GgufFile> & file) {
    const int wanted = options.gpu_layers;
    if (wanted < -1) {
        throw ArgumentError("gpu_layers is " + std::to_string(wanted) + "; accepted: 0 or more, or -1 to choose");
    }
    auto device = open_device(options.device);
    if (!device && wanted > 0) {
        throw ArgumentError("gpu_layers is " + std::to_string(wanted) + ", and device '" + options.device +
                            "' is no GPU; accepted: 0, or a device that is one");
    }
    if (!device || wanted == 0) {
        return {};
    }
    const Demand demand(file, *device);
    const int all = demand.n_layers();
    if (wanted > 0) {
        const int n = std::min(wanted, all);
        check_wanted(demand, *device, n);
        return {std::move(device), all - n};
    }
    std::string why_not = demand.not_computed(all);
    if (why_not.empty()) {
        const size_t free = device->free_memory().free;
        if (demand.bytes(all) <= free) {
            return {std::move(device), 0};
        }
        if (const int n = fitting(all - 1, free, [&](int some) { return demand.bytes_with_session(some); }); n > 0) {
            return {std::move(device), all - n};
        }
        why_not = too_much("the model needs ", demand.bytes(all), *device);
    }
    if (options.device == "auto") {
        return {};
    }
    throw ModelError(why_not + "; accepted: device='cpu'");
}

}  // namespace zipcache

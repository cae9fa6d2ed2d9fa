#include "common/error.h"
#include "cuda/cuda.h"
#include "kv/host_codec.h"
#include "metal/metal.h"

namespace zipcache {

std::shared_ptr<const Segment> SegmentCodec::keep(const Rows &, Kept &&, const Parallel &) const {
    throw ArgumentError("this device's KV cache does not evict; accepted: policies that keep all tokens");
}

std::shared_ptr<const SegmentCodec> make_codec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h,
                                               OutputNorms & norms) {
    if (!device.is_host()) {
        if (const char * what = host_only(*policy)) {
            throw ArgumentError("the KV policy " + policy->options.policy + " does not run on " + device.name() +
                                ", which has no " + what + "; accepted: the device cpu, or another policy");
        }
        return device.name() == "metal" ? make_metal_codec(device, policy, h, norms)
                                        : make_cuda_codec(device, policy, h, norms);
    }
    return std::make_shared<HostCodec>(device, std::move(policy), h, norms);
}

std::vector<KvStage> make_codecs(const std::vector<Stage> & stages, const std::shared_ptr<const Policy> & policy,
                                 const HParams & h, OutputNorms & norms) {
    std::vector<KvStage> all;
    all.reserve(stages.size());
    for (const Stage & stage : stages) {
        all.push_back({stage, make_codec(*stage.device, policy, h, norms)});
    }
    return all;
}

}  // namespace zipcache

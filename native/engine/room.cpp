#include "engine/room.h"

#include <algorithm>

#include "common/error.h"
#include "engine/session.h"

namespace zipcache {
namespace {

constexpr int64_t kLeast = 256;  // tokens that a session must have room for

std::string mib(size_t bytes) {
    return std::to_string(bytes >> 20) + " MiB";
}

}  // namespace

size_t session_bytes(const Model & model, const Policy & policy, const SegmentCodec & codec, int64_t n_ctx) {
    const HParams & h = model.hparams();
    const int64_t stretch = std::min<int64_t>(n_ctx, Session::kStretch);
    const int64_t chunk = std::min<int64_t>(n_ctx, model.executor().device().chunk());
    const int64_t widest = std::max({h.n_embd, 2 * h.n_ff, (h.n_heads + 2 * h.n_kv_heads) * h.head_dim});
    size_t cache = f16_cache_bytes(h, n_ctx);
    if (policy.compresses) {
        cache = h.n_layers * codec.most_bytes(n_ctx) + f16_cache_bytes(h, policy.window_capacity()) +
                f16_cache_bytes(h, n_ctx) / h.n_layers;
    }
    const size_t activations = size_t(stretch * h.n_embd + 6 * chunk * widest + h.n_vocab) * sizeof(float);
    return cache + activations + size_t(chunk * n_ctx) * sizeof(ggml_fp16_t);
}

int64_t fitting_n_ctx(Model & model, const std::shared_ptr<const Policy> & policy, int64_t n_ctx) {
    Device & device = model.executor().device();
    const int64_t wanted = n_ctx > 0 ? n_ctx : model.hparams().n_ctx_train;
    if (device.is_host()) {
        return wanted;
    }
    const auto codec = make_codec(device, policy, model.hparams(), model.output_norms());
    const size_t free = device.free_memory().free;
    auto bytes = [&](int64_t n) { return session_bytes(model, *policy, *codec, n); };
    auto fits = [&](int64_t n) { return bytes(n) <= free; };
    if (fits(wanted)) {
        return wanted;
    }
    int64_t most = 0;
    for (int64_t step = wanted / 2; step > 0; step = step > 1 ? (step + 1) / 2 : 0) {
        most += most + step < wanted && fits(most + step) ? step : 0;
    }
    if (n_ctx > 0 || most < std::min(kLeast, wanted)) {
        throw ContextError("a context of " + std::to_string(wanted) + " tokens takes " + mib(bytes(wanted)) +
                           " with the KV policy " + policy->options.policy + ", and " + device.name() + " has " +
                           mib(free) + " free; accepted: n_ctx up to " + std::to_string(most) +
                           (policy->compresses ? ", or fewer KV bits" : ", or a KV policy that compresses"));
    }
    return most;
}

}  // namespace zipcache

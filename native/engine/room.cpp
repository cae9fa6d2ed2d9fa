#include "engine/room.h"

#include <algorithm>

#include "common/error.h"
#include "engine/session.h"
#include "graph/forward.h"

namespace zipcache {
namespace {

constexpr int64_t kLeast = 256;  // tokens that a session must have room for
// What ggml and cuBLAS hold of temporaries, and compressions beside their segments, of a prompt of 126,976 tokens on an
// 8B model.
constexpr size_t kTemporaries = size_t(80) << 20;

std::string mib(size_t bytes) {
    return std::to_string(bytes >> 20) + " MiB";
}

}  // namespace

void for_stretches(int64_t n_ctx, const std::function<void(int64_t, int64_t)> & use) {
    for (int64_t n_past = 0, n; n_past < n_ctx; n_past += n) {
        n = std::min(Session::stretch_after(n_past), n_ctx - n_past);
        use(n_past, n);
    }
}

size_t stretch_bytes(const HParams & h, const Policy & policy, int64_t widest_chunk, int64_t least_wide, int64_t n_past,
                     int64_t n) {
    const int64_t n_keys = n_past + n, chunk = std::min(n, PrefillGraphs::chunk_over(n_keys, widest_chunk));
    const int64_t q_dim = int64_t(h.n_heads) * h.head_dim, kv_dim = int64_t(h.n_kv_heads) * h.head_dim;
    // the residual, then: its norm, gate, up and their product; or its norm, q, k and v as they come and turned
    const int64_t ffn = h.n_embd + 3 * std::max<int64_t>(1, h.n_experts_used) * int64_t(h.n_ff);
    const int64_t attention = h.n_embd + 2 * (q_dim + 2 * kv_dim);
    const int64_t activations = chunk * (h.n_embd + std::max(ffn, attention));
    // bytes: inputs in 8 bits, or with the weight in 16
    const int64_t widest = std::max<int64_t>({h.n_ff, h.n_embd, q_dim});
    const int64_t products = chunk >= least_wide ? (chunk + h.n_embd) * widest * 2 : chunk * widest * 5 / 4;
    const int64_t n_probes = policy.compresses && policy.wants_probes() ? most_probes(policy.options, n) : 0;
    const size_t rows = policy.compresses ? f16_cache_bytes(h, n_keys) / h.n_layers : 0;
    return size_t(n * h.n_embd + n_probes * q_dim + activations + h.n_vocab) * sizeof(float) + size_t(products) +
           size_t(chunk * n_keys) * sizeof(ggml_fp16_t) + rows;
}

size_t session_bytes(const HParams & h, const Policy & policy, const KvStage & stage, int64_t n_ctx) {
    auto uncompressed = [&](int64_t n) { return f16_cache_bytes(h, n) / h.n_layers; };  // of one layer
    size_t most = 0;
    for_stretches(n_ctx, [&](int64_t n_past, int64_t n) {
        const size_t layer = policy.compresses
                                 ? stage.codec->most_bytes(n_past + n) + uncompressed(policy.window_capacity())
                                 : uncompressed(n_ctx);
        const Device & device = *stage.layers.device;
        most = std::max(most, stage.layers.n_layers() * layer +
                                  stretch_bytes(h, policy, device.chunk(), device.least_wide(), n_past, n));
    });
    return most + kTemporaries;
}

int64_t fitting_n_ctx(Model & model, const std::shared_ptr<const Policy> & policy, int64_t n_ctx) {
    Device & device = model.executor().device();
    const int64_t wanted = n_ctx > 0 ? n_ctx : model.hparams().n_ctx_train;
    if (device.is_host()) {
        return wanted;
    }
    const KvStage stage = {model.stages().back(), make_codec(device, policy, model.hparams(), model.output_norms())};
    const size_t free = device.free_memory().free;
    auto bytes = [&](int64_t n) { return session_bytes(model.hparams(), *policy, stage, n); };
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

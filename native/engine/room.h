#pragma once
#include <functional>

#include "engine/model.h"
#include "kv/codec.h"

namespace zipcache {

// Calls use(n_past, n) for the stretches of a prompt of n_ctx tokens.
void for_stretches(int64_t n_ctx, const std::function<void(int64_t, int64_t)> & use);

// Bytes that a stretch of n tokens behind n_past takes beside the cache: hidden states, probes' queries, the mask and
// the activations of a chunk (from least_wide tokens on with Device::wide_product()'s copies), logits and, where the
// cache compresses, one layer's rows.
size_t stretch_bytes(const HParams & h, const Policy & policy, int64_t widest_chunk, int64_t least_wide, int64_t n_past,
                     int64_t n);

// Bytes that a session of n_ctx tokens takes at most of the memory of the device of these layers, but for the weights:
// their cache, one layer's uncompressed rows, the hidden states of a stretch, a graph's activations. The codec may be
// null where the policy does not compress.
size_t session_bytes(const HParams & h, const Policy & policy, const KvStage & stage, int64_t n_ctx);

// n_ctx, or for 0 as much as the model was trained for and the device has memory for. Throws ContextError where it has
// not that memory, which names what it has it for.
int64_t fitting_n_ctx(Model & model, const std::shared_ptr<const Policy> & policy, int64_t n_ctx);

}  // namespace zipcache

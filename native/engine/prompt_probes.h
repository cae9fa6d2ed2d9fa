#pragma once
#include <cstdint>
#include <vector>

#include "engine/model.h"
#include "kv/probes.h"

namespace zipcache {

// Throws ArgumentError for special probes of a model without a tokenizer.
void check_probes(const Model & model, const KvOptions & options);

// Which tokens of a prompt are probes, as choose_probes() has them. Throws as check_probes() does.
std::vector<int64_t> prompt_probes(const Model & model, const KvOptions & options, const int32_t * tokens, int64_t n,
                                   uint64_t seed);

}  // namespace zipcache

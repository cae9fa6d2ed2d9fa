#pragma once
#include <cstddef>
#include <cstdint>

#include "kv/policy.h"

namespace zipcache {

// Bytes that a cache will take at n_tokens tokens of one prompt, without slack, before there is one.
size_t plan_kv(const Policy & policy, const HParams & h, int64_t n_tokens);

}  // namespace zipcache

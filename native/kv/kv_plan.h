#pragma once
#include <cstddef>
#include <cstdint>

#include "kv/policy.h"

namespace zipcache {

// What a cache will take, before there is one.
struct KvPlan {
    size_t cache_bytes = 0;    // at n_tokens tokens of one prompt, without slack
};

KvPlan plan_kv(const Policy & policy, const HParams & h, int64_t n_tokens);

}  // namespace zipcache

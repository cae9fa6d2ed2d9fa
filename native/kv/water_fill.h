#pragma once
#include <vector>

#include "kv/policy.h"

namespace zipcache {

constexpr int kHalvings = 20;  // of the bracket around lambda: to 4e-5 of itself

// What it costs to store a token's key and value coarsely: the error of b bits is weight * distortion(b).
struct Costs {
    int64_t n_tokens = 0;
    std::vector<float> k;  // [n_kv_heads, n_tokens]
    std::vector<float> v;  // [n_kv_heads, n_tokens]
};

// Mean squared error of a code of each tier, in squared ranges of what it codes, and the bits of its key and value.
struct TierErrors {
    std::vector<float> k, v, bits;  // [n_tiers]
};
TierErrors tier_errors(const ggml_zipcache_format & format);

// Tiers of the tokens of a segment, [n_kv_heads, n_tokens]: for each token the pair of bits with the least
// weight * distortion + lambda * bits, lambda the least for which the whole segment, everything counted, takes at most
// `budget` bits an element; the fewest bits where even those are more. Evicting tiers are not used.
std::vector<uint8_t> water_fill(const ggml_zipcache_format & format, const Costs & costs, double budget);

}  // namespace zipcache

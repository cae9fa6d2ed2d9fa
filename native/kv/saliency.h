#pragma once
#include "kv/probes.h"

namespace zipcache {

// What the probes' attention says of rows [first, first + n).
struct Scores {
    int64_t n = 0;
    std::vector<float> score;   // [n_kv_heads, n]: sum of the probabilities that a row got from the heads of its group
    std::vector<float> square;  // [n_kv_heads, n]: sum of their squares
    std::vector<float> seen;    // [n]: probes that see each row
};

Scores score_rows(const Rows & rows, int64_t first, int64_t n, const Probes & probes, const HParams & h,
                  const Parallel & parallel);

// [n]: how many of the probes see each row.
std::vector<float> count_seen(const Rows & rows, int64_t first, int64_t n, const Probes & probes);

// 1 for the newest n_always of n tokens and the n_salient most salient of the others, the older one first among equals.
std::vector<uint8_t> most_salient(const float * saliency, int64_t n, int64_t n_salient, int64_t n_always);

// [n_kv_heads, n], or [1, n] unless the policy ranks each head apart: how salient each row is (METHOD section 2).
std::vector<float> saliency_of(const Policy & policy, const Scores & scores, const HParams & h, uint64_t seed);

}  // namespace zipcache

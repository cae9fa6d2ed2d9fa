#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "kv/policy.h"

namespace zipcache {

// Runs task(i) for i in [0, n) on the model's threads.
using Parallel = std::function<void(int n, const std::function<void(int)> & task)>;

// Query rows whose attention is scored (paper, section 4.2).
struct Probes {
    std::vector<int64_t> row;    // [n]: the token, counted in the rows at hand, that each is; rising
    const float * q = nullptr;   // [n, n_heads, head_dim]
    std::vector<float> log_sum;  // [n, n_heads]: log-sum-exp of each row's logits over all it saw; empty: its keys are
                                 // all at hand, so it can be found
    int64_t size() const { return static_cast<int64_t>(row.size()); }

    // Of decode steps on a device whose memory the host does not read, instead of q and log_sum: where their slots lie.
    std::vector<int32_t> slot;             // [n]: the slot of each
    const uint16_t * slot_q = nullptr;     // [n_slots, n_heads, head_dim]
    const float * slot_log_sum = nullptr;  // [n_slots, n_heads]
};

// Which of n_tokens new tokens are probes: rising indices in [0, n_tokens). The last one always is.
// special: those of them that the strategy of this name chooses from, rising.
std::vector<int64_t> choose_probes(const KvOptions & options, int64_t n_tokens, uint64_t seed,
                                   const std::vector<int64_t> & special = {});

// The same of decode steps to come. Their tokens are not known yet, so random+recent stands in for special.
std::vector<int64_t> choose_steps(const KvOptions & options, int64_t n_steps, uint64_t seed);

// How many are chosen; of special ones at most.
int64_t most_probes(const KvOptions & options, int64_t n_tokens);

// Rows of keys and values of one layer, f16 after RoPE.
struct Rows {
    int64_t n;           // rows at hand
    int64_t stride;      // rows between KV heads
    const uint16_t * k;  // [n_kv_heads, stride, head_dim]
    const uint16_t * v;  // [n_kv_heads, stride, head_dim]
    int sliding_window;  // 0: a row sees all before it
};

}  // namespace zipcache

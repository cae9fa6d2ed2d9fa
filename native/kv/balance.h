#pragma once
#include "device/memory.h"
#include "kv/probes.h"
#include "kv/saliency.h"

namespace zipcache {

// What a layer's first compression learns of its keys and values, and all later ones reuse (METHOD section 8). MiKV's
// has nothing but what divides the keys.
struct Balance {
    std::vector<float> k_divisor;  // [n_kv_heads, head_dim]: sqrt(spread of the keys / size of the probe queries)
    std::vector<float> v_divisor;  // [n_kv_heads, head_dim]: sqrt(spread of the values / norm of what reads them)
    std::vector<float> k_weight;   // [n_kv_heads]: what a unit of noise in a stored key costs the output
    std::vector<float> v_weight;   // [n_kv_heads]: the same for a stored value
    Bytes on_device;               // a copy of all of them, one after the other, where the device is not the host

    size_t bytes() const {
        return sizeof(float) * (k_divisor.size() + v_divisor.size() + k_weight.size() + v_weight.size()) +
               on_device.size();
    }
};

// From rows [first, first + n). output_norms [n_heads * head_dim]: squared column norms of the output projection.
Balance find_balance(const Rows & rows, int64_t first, int64_t n, const Probes & probes, const Scores & scores,
                     const std::vector<float> & output_norms, const HParams & h, const Parallel & parallel);

// MiKV's balancer (METHOD section 6): keys are divided by sqrt(max |k_c| / max |q_c|), over rows [first, first + n) and
// the probe queries of the head's group.
Balance find_peaks(const Rows & rows, int64_t first, int64_t n, const Probes & probes, const HParams & h);

// CST's normalizer (paper, section 4.1): sqrt(max |v_c|) of each channel of rows [first, first + n).
// [n_kv_heads, head_dim], each > 0
std::vector<float> find_normalizer(const Rows & rows, int64_t first, int64_t n, const HParams & h);

}  // namespace zipcache

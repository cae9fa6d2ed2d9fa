#pragma once
#include <algorithm>

#include "ggml-zipcache.h"

// Shared by the variants of score_probes; the contract is in ggml-zipcache.h.
namespace zipcache::score_probes {

struct Seen {
    int64_t first, last;  // tokens [first, last)
};

inline Seen seen_by(const ggml_zipcache_probes & probes, int64_t probe) {
    const int64_t last = probes.position[probe] + 1;
    const int64_t window = probes.sliding_window;
    return {window > 0 ? std::max<int64_t>(0, last - window) : 0, last};
}

// score[i] += softmax(logits)[i], square[i] += its square; logits [n] f32, n >= 1, is overwritten
using AddSoftmax = void (*)(float * logits, int64_t n, float * score, float * square);

// Those that are built for this machine's architecture.
void add_softmax_avx2(float * logits, int64_t n, float * score, float * square);
void add_softmax_avx512(float * logits, int64_t n, float * score, float * square);
void add_softmax_neon(float * logits, int64_t n, float * score, float * square);

}  // namespace zipcache::score_probes

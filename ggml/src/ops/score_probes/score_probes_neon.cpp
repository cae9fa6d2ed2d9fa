#include <cmath>

#include "score_probes.h"
#include "simd/neon.h"

namespace zipcache::score_probes {
namespace {

#include "score_probes_simd.h"

}  // namespace

void add_softmax_neon(float * logits, int64_t n, float * score, float * square) {
    add_softmax<simd::Neon>(logits, n, score, square);
}

}  // namespace zipcache::score_probes

#include <cmath>

#include "score_probes.h"
#include "simd/avx512.h"

namespace zipcache::score_probes {
namespace {

#include "score_probes_simd.h"

}  // namespace

void add_softmax_avx512(float * logits, int64_t n, float * score, float * square) {
    add_softmax<simd::Avx512>(logits, n, score, square);
}

}  // namespace zipcache::score_probes

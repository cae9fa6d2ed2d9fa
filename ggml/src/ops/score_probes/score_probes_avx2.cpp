#include <cmath>

#include "score_probes.h"
#include "simd/avx2.h"

namespace zipcache::score_probes {
namespace {

#include "score_probes_simd.h"

}  // namespace

void add_softmax_avx2(float * logits, int64_t n, float * score, float * square) {
    add_softmax<simd::Avx2>(logits, n, score, square);
}

}  // namespace zipcache::score_probes

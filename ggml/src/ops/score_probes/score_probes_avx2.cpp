#include "score_probes.h"

#ifdef __AVX2__
#include <cmath>

#include "simd/avx2.h"

namespace zipcache::score_probes {
namespace {

#include "score_probes_simd.h"

}  // namespace

AddSoftmax add_softmax_avx2() {
    return add_softmax<simd::Avx2>;
}

}  // namespace zipcache::score_probes
#else
zipcache::score_probes::AddSoftmax zipcache::score_probes::add_softmax_avx2() {
    return nullptr;
}
#endif

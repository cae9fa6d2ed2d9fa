#include "score_probes.h"

#ifdef __AVX512F__
#include <cmath>

#include "simd/avx512.h"

namespace zipcache::score_probes {
namespace {

#include "score_probes_simd.h"

}  // namespace

AddSoftmax add_softmax_avx512() {
    return add_softmax<simd::Avx512>;
}

}  // namespace zipcache::score_probes
#else
zipcache::score_probes::AddSoftmax zipcache::score_probes::add_softmax_avx512() {
    return nullptr;
}
#endif

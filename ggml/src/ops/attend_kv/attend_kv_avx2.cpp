#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "attend_kv.h"
#include "simd/avx2.h"

namespace zipcache::attend_kv {
namespace {

using namespace format;

struct Avx2Dot {
    using Floats = simd::Avx2;

    static __m256i pairs(__m256i codes, __m256i bytes) {
        return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, bytes), _mm256_set1_epi16(1));
    }
    template <int Bits>
    static __m256i dot(__m256i sum, __m256i codes, __m256i bytes) {
        if constexpr (Bits == 8) {  // two products of 255 * 127 would overflow 16 bits
            const __m256i nibble = _mm256_set1_epi8(15);
            const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), nibble);
            sum = _mm256_add_epi32(sum, _mm256_slli_epi32(pairs(high, bytes), 4));
            codes = _mm256_and_si256(codes, nibble);
        }
        return _mm256_add_epi32(sum, pairs(codes, bytes));
    }
};

#include "packed_dots_avx2.h"
#include "window_simd.h"

}  // namespace

void window_avx2(const WindowTask & task) {
    window_simd<simd::Avx2>(task);
}

void packed_avx2(const PackedTask & task) {
    packed_simd<Avx2Dot>(task);
}

}  // namespace zipcache::attend_kv

#pragma once
#include <cmath>
#include <cstdint>

namespace zipcache {

// x [n] <- x H, H block-diagonal of normalized Walsh-Hadamard matrices of size n & -n. Its own inverse.
inline void walsh_hadamard(float * x, int n) {
    const int size = n & -n;
    for (int half = 1; half < size; half *= 2) {
        for (int first = 0; first < n; first += 2 * half) {
            for (int i = first; i < first + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
    for (int i = 0; i < n; ++i) {
        x[i] *= scale;
    }
}

}  // namespace zipcache

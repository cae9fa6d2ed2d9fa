#pragma once
// Included by the register types; see there for the unnamed namespace.

namespace zipcache::simd {
namespace {

// exp(x) for x <= 0 in float: 2^n * e^r with |r| <= ln(2)/2 and a degree-6 Taylor polynomial (relative error 2e-7).
template <class V>
V exp_polynomial(V x) {
    const V n = V::round(V::mul(x, V::set(1.44269504f)));
    const V r = V::fma(n, V::set(-1.42860677e-6f), V::fma(n, V::set(-0.693145752f), x));
    V p = V::set(1.0f / 720);
    for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
        p = V::fma(p, r, V::set(coefficient));
    }
    return V::scale_by_power(p, n);
}

}  // namespace
}  // namespace zipcache::simd

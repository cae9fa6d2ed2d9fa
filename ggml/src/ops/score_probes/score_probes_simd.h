#pragma once
// Written once over a register type V. Include it only from a file that is compiled for V's instruction set, inside an
// anonymous namespace: no symbol of it may leave that file.

template <class V>
void add_softmax(float * logits, int64_t n, float * score, float * square) {
    const int64_t whole = n / V::lanes * V::lanes;
    float maximum = logits[n - 1];
    for (int64_t i = whole; i < n; ++i) {
        maximum = std::max(maximum, logits[i]);
    }
    V top = V::set(maximum);
    for (int64_t i = 0; i < whole; i += V::lanes) {
        top = V::max(top, V::load(logits + i));
    }
    maximum = top.max();
    V total = V::zero();
    for (int64_t i = 0; i < whole; i += V::lanes) {
        const V weight = V::exp(V::sub(V::load(logits + i), V::set(maximum)));
        weight.store(logits + i);
        total = V::add(total, weight);
    }
    float sum = total.sum();
    for (int64_t i = whole; i < n; ++i) {
        sum += logits[i] = std::exp(logits[i] - maximum);
    }
    const float inverse = 1.0f / sum;
    for (int64_t i = 0; i < whole; i += V::lanes) {
        const V share = V::mul(V::load(logits + i), V::set(inverse));
        V::add(share, V::load(score + i)).store(score + i);
        V::fma(share, share, V::load(square + i)).store(square + i);
    }
    for (int64_t i = whole; i < n; ++i) {
        const float share = logits[i] * inverse;
        score[i] += share;
        square[i] += share * share;
    }
}

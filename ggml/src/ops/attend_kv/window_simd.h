#pragma once
// The vector kernel, written once over a register type V. Include it only from a file that is compiled for V's
// instruction set, inside an anonymous namespace: no symbol of it may leave that file.
//
// Tokens go by in blocks: logits of a block first (a tile of tokens by queries keeps its sums in registers, each key
// is converted from f16 once per tile), then one running-maximum update, then the values.

constexpr int kBlock = 64;  // tokens; logits of a block stay in L1

template <class V, int Queries>
void block_logits(const float * q, const uint16_t * k, int n_tokens, int dim, float * logits) {
    constexpr int kTile = 4;
    for (int t = 0; t < n_tokens; t += kTile) {
        const int n = std::min(kTile, n_tokens - t);
        const uint16_t * row[kTile];
        for (int j = 0; j < kTile; ++j) {
            row[j] = k + int64_t(t + std::min(j, n - 1)) * dim;  // a short tile repeats its last row
        }
        V sum[Queries][kTile];
        for (int i = 0; i < Queries; ++i) {
            for (int j = 0; j < kTile; ++j) {
                sum[i][j] = V::zero();
            }
        }
        for (int c = 0; c < dim; c += V::lanes) {
            V key[kTile];
            for (int j = 0; j < kTile; ++j) {
                key[j] = V::load_f16(row[j] + c);
            }
            for (int i = 0; i < Queries; ++i) {
                const V query = V::load(q + i * dim + c);
                for (int j = 0; j < kTile; ++j) {
                    sum[i][j] = V::fma(query, key[j], sum[i][j]);
                }
            }
        }
        for (int i = 0; i < Queries; ++i) {
            for (int j = 0; j < n; ++j) {
                logits[i * kBlock + t + j] = sum[i][j].sum();
            }
        }
    }
}

// Turns the logits of a block into weights relative to the running maximum; returns by how much old sums shrink.
template <class V>
float block_weights(float * logits, int n_tokens, float & maximum, float & sum) {
    for (int t = n_tokens; t % V::lanes != 0; ++t) {
        logits[t] = -INFINITY;
    }
    V top = V::set(maximum);
    for (int t = 0; t < n_tokens; t += V::lanes) {
        top = V::max(top, V::load(logits + t));
    }
    const float before = maximum;
    maximum = top.max();
    V total = V::zero();
    for (int t = 0; t < n_tokens; t += V::lanes) {
        const V weight = V::exp(V::sub(V::load(logits + t), V::set(maximum)));
        weight.store(logits + t);
        total = V::add(total, weight);
    }
    const float shrink = before == maximum ? 1.0f : std::exp(before - maximum);
    sum = sum * shrink + total.sum();
    return shrink;
}

template <class V, int Queries>
void block_values(const float * weights, const float * shrink, const uint16_t * v, int n_tokens, int dim, float * out) {
    constexpr int kWidth = 16 / V::lanes;  // registers of channels; head_dim is a multiple of 16
    for (int c = 0; c < dim; c += kWidth * V::lanes) {
        V sum[Queries][kWidth];
        for (int i = 0; i < Queries; ++i) {
            for (int j = 0; j < kWidth; ++j) {
                sum[i][j] = V::mul(V::load(out + i * (dim + 2) + c + j * V::lanes), V::set(shrink[i]));
            }
        }
        for (int t = 0; t < n_tokens; ++t) {
            V value[kWidth];
            for (int j = 0; j < kWidth; ++j) {
                value[j] = V::load_f16(v + int64_t(t) * dim + c + j * V::lanes);
            }
            for (int i = 0; i < Queries; ++i) {
                const V weight = V::set(weights[i * kBlock + t]);
                for (int j = 0; j < kWidth; ++j) {
                    sum[i][j] = V::fma(weight, value[j], sum[i][j]);
                }
            }
        }
        for (int i = 0; i < Queries; ++i) {
            for (int j = 0; j < kWidth; ++j) {
                sum[i][j].store(out + i * (dim + 2) + c + j * V::lanes);
            }
        }
    }
}

template <class V, int Queries>
void window_queries(const WindowTask & task, int first) {
    const int dim = task.head_dim;
    const float * q = task.q + first * dim;
    float * out = task.partial + first * (dim + 2);
    alignas(64) float logits[Queries * kBlock];
    float maximum[Queries], sum[Queries], shrink[Queries];
    for (int i = 0; i < Queries; ++i) {
        maximum[i] = -INFINITY;
        sum[i] = 0;
        std::fill_n(out + i * (dim + 2), dim, 0.0f);
    }
    for (int64_t t = 0; t < task.n_tokens; t += kBlock) {
        const int n = int(std::min<int64_t>(kBlock, task.n_tokens - t));
        block_logits<V, Queries>(q, task.k + t * dim, n, dim, logits);
        for (int i = 0; i < Queries; ++i) {
            shrink[i] = block_weights<V>(logits + i * kBlock, n, maximum[i], sum[i]);
        }
        block_values<V, Queries>(logits, shrink, task.v + t * dim, n, dim, out);
    }
    for (int i = 0; i < Queries; ++i) {
        out[i * (dim + 2) + dim] = maximum[i];
        out[i * (dim + 2) + dim + 1] = sum[i];
    }
}

template <class V>
void window_simd(const WindowTask & task) {
    int first = 0;
    for (; first + 4 <= task.n_queries && task.n_queries != 6 && task.n_queries != 5; first += 4) {
        window_queries<V, 4>(task, first);
    }
    for (; first + 3 <= task.n_queries; first += 3) {
        window_queries<V, 3>(task, first);
    }
    for (; first + 2 <= task.n_queries; first += 2) {
        window_queries<V, 2>(task, first);
    }
    for (; first < task.n_queries; ++first) {
        window_queries<V, 1>(task, first);
    }
}

#include <cmath>
#include <limits>
#include <vector>

#include "attend_kv.h"

namespace zipcache::attend_kv {
namespace {

// What one query head sees: keys and values as f32 rows.
struct Seen {
    std::vector<float> k, v;  // [n, head_dim]
};

void append_segment(const ggml_zipcache_segment & segment, int head, Seen & seen) {
    const auto & f = *segment.format;
    const int dim = f.head_dim;
    const int64_t n = format::header_of(segment.data).n_tokens;
    std::vector<float> k(n * dim), v(n * dim);
    std::vector<uint8_t> kept(n);
    format::dequantize_head(f, segment.data, head, 0, n, segment.k_divisor, segment.v_divisor, k.data(), v.data(),
                            kept.data());
    if (segment.correction) {
        for (bool key : {true, false}) {
            format::correct_rows(f, format::correction_of(f, segment.correction, head, key), 0, n,
                                 key ? k.data() : v.data());
        }
    }
    for (int64_t t = 0; t < n; ++t) {
        const bool in_range = !segment.position || (t >= segment.first_seen && t < segment.last_seen);
        if (kept[t] && in_range) {
            seen.k.insert(seen.k.end(), &k[t * dim], &k[t * dim] + dim);
            seen.v.insert(seen.v.end(), &v[t * dim], &v[t * dim] + dim);
        }
    }
}

// out [head_dim + 2]: unnormalized output, logit maximum, sum; added to what is there.
void add_seen(const Seen & seen, const float * q, int dim, float scale, float * out) {
    const auto n = static_cast<int64_t>(seen.k.size()) / dim;
    const double before = out[dim];
    double maximum = before;
    std::vector<double> weight(n);
    for (int64_t t = 0; t < n; ++t) {
        double dot = 0;
        for (int c = 0; c < dim; ++c) {
            dot += double(q[c]) * seen.k[t * dim + c];
        }
        weight[t] = dot * scale;
        maximum = std::max(maximum, weight[t]);
    }
    if (n == 0) {
        return;
    }
    double sum = out[dim + 1] * std::exp(before - maximum);
    for (double & w : weight) {
        sum += w = std::exp(w - maximum);
    }
    for (int c = 0; c < dim; ++c) {
        double value = out[c] * std::exp(before - maximum);
        for (int64_t t = 0; t < n; ++t) {
            value += weight[t] * seen.v[t * dim + c];
        }
        out[c] = float(value);
    }
    out[dim] = float(maximum);
    out[dim + 1] = float(sum);
}

}  // namespace

void add_segment_ref(const ggml_zipcache_layer & layer, const ggml_zipcache_segment & segment, const float * q,
                     float * partial) {
    const int dim = layer.head_dim, group = layer.n_heads / layer.n_kv_heads;
    for (int head = 0; head < layer.n_kv_heads; ++head) {
        Seen seen;
        append_segment(segment, head, seen);
        for (int i = head * group; i < (head + 1) * group; ++i) {
            add_seen(seen, q + int64_t(i) * dim, dim, layer.scale, partial + int64_t(i) * (dim + 2));
        }
    }
}

}  // namespace zipcache::attend_kv

void ggml_zipcache_attend_kv_ref(const ggml_zipcache_layer * layer, const float * q, int64_t n_tokens, float * out) {
    using namespace zipcache::attend_kv;
    const auto range = visible_tokens(*layer, n_tokens);
    const int dim = layer->head_dim, group = layer->n_heads / layer->n_kv_heads;
    std::vector<float> one(dim + 2);
    for (int head = 0; head < layer->n_kv_heads; ++head) {
        Seen seen;
        for (int64_t s = 0; s < layer->n_segments; ++s) {
            append_segment(layer->segments[s], head, seen);
        }
        const int64_t base = head * layer->capacity * dim;
        for (int64_t i = base + range.first * dim; i < base + range.last * dim; ++i) {
            seen.k.push_back(ggml_fp16_to_fp32(layer->k[i]));
            seen.v.push_back(ggml_fp16_to_fp32(layer->v[i]));
        }
        for (int i = head * group; i < (head + 1) * group; ++i) {
            std::fill(one.begin(), one.end(), 0.0f);
            one[dim] = -std::numeric_limits<float>::infinity();
            add_seen(seen, q + int64_t(i) * dim, dim, layer->scale, one.data());
            for (int c = 0; c < dim; ++c) {
                out[int64_t(i) * dim + c] = one[c] / one[dim + 1];
            }
        }
    }
}

#pragma once
// Random caches to attend to, and what the portable code makes of them, for the tests of every device.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "segment_sample.h"

struct Shape {
    int head_dim, n_kv_heads, group, sliding_window;
};

// A sequence: segments, some tokens of some of them hidden, and a window.
struct Sequence {
    std::vector<Sample> samples;
    std::vector<std::vector<uint16_t>> position;  // of each segment, in the CPU's order
    std::vector<ggml_zipcache_segment> segments;
    std::vector<ggml_fp16_t> k, v;  // the window
    int32_t n_tokens = 0;
    int64_t capacity = 0;
};

struct Case {
    Shape shape;
    float scale;
    std::vector<Sequence> sequences;
    std::vector<float> q;  // [n_sequences, n_heads, head_dim]

    int n_heads() const { return shape.n_kv_heads * shape.group; }
};

// A sample's format as the policies auto and zipcache have theirs.
inline void make_common(Sample & s, std::mt19937 & random) {
    auto & f = s.format;
    f.k.scope = random() % 2 ? GGML_ZIPCACHE_SCOPE_SEGMENT : GGML_ZIPCACHE_SCOPE_GROUP;
    f.k.params = random() % 2 ? GGML_ZIPCACHE_PARAMS_F16_PAIR : GGML_ZIPCACHE_PARAMS_F8_PAIR;
    const ggml_zipcache_params params[] = {GGML_ZIPCACHE_PARAMS_F16_PAIR, GGML_ZIPCACHE_PARAMS_F8_PAIR,
                                           GGML_ZIPCACHE_PARAMS_F8_SCALE};
    f.v.scope = GGML_ZIPCACHE_SCOPE_TOKEN;
    f.v.params = params[random() % 3];
    const bool spans = f.same_order && f.v.params == GGML_ZIPCACHE_PARAMS_F16_PAIR && random() % 2;
    f.v.block = spans ? f.n_kv_heads * f.head_dim : f.head_dim;
    s.quantize();
}

inline Sequence random_sequence(std::mt19937 & random, const Shape & shape, bool common) {
    Sequence s;
    std::normal_distribution<float> normal;
    s.n_tokens = random() % 16 ? 1 + int32_t(random() % 150) : 0;
    s.capacity = std::max(1, s.n_tokens) + int64_t(random() % 5);
    for (int64_t i = 0; i < shape.n_kv_heads * s.capacity * shape.head_dim; ++i) {
        s.k.push_back(ggml_fp32_to_fp16(normal(random)));
        s.v.push_back(ggml_fp32_to_fp16(normal(random)));
    }
    const int n = int(random() % 4);
    for (int i = 0; i < n; ++i) {
        s.samples.push_back(random_sample(random, shape.head_dim, shape.n_kv_heads));
        if (common) {
            make_common(s.samples.back(), random);
        }
        if (i > 0 && common) {
            s.samples[i].format.k.rotate = s.samples[0].format.k.rotate;
        }
        if (i > 0 && (common || random() % 3 == 0)) {  // a layer's segments share their divisors
            s.samples[i].k_divisor = s.samples[0].k_divisor;
            s.samples[i].v_divisor = s.samples[0].v_divisor;
            s.samples[i].quantize();
        }
    }
    s.position.resize(n);
    for (int i = 0; i < n; ++i) {
        const Sample & x = s.samples[i];
        ggml_zipcache_segment segment = {
            &x.format, x.segment.data(), x.k_divisor.data(), x.v_divisor.data(), nullptr, 0, 0, 0, nullptr};
        if (random() % 3 == 0) {
            segment.n_places = ggml_zipcache_segment_places(&x.format, x.segment.data());
            s.position[i].resize(x.format.n_kv_heads * segment.n_places);
            ggml_zipcache_segment_positions(&x.format, x.segment.data(), s.position[i].data());
            segment.position = s.position[i].data();
            segment.first_seen = int64_t(random() % (x.n_tokens + 1));
            segment.last_seen = segment.first_seen + int64_t(random() % (x.n_tokens + 1 - segment.first_seen));
        }
        s.segments.push_back(segment);
    }
    return s;
}

inline Case random_case(std::mt19937 & random) {
    const int dims[] = {64, 80, 96, 128, 256};
    Case c;
    c.shape = {dims[random() % 5], 1 + int(random() % 3), 1 + int(random() % 16),
               random() % 3 ? 0 : 1 + int(random() % 100)};
    c.scale = 1 / std::sqrt(float(c.shape.head_dim));
    const int n = 1 + int(random() % 2);
    const bool common = random() % 2;
    for (int i = 0; i < n; ++i) {
        c.sequences.push_back(random_sequence(random, c.shape, common));
    }
    std::normal_distribution<float> normal;
    for (int i = 0; i < n * c.n_heads() * c.shape.head_dim; ++i) {
        c.q.push_back(normal(random));
    }
    return c;
}

inline ggml_zipcache_layer layer_of(const Case & c, const Sequence & s) {
    return {c.n_heads(),
            c.shape.n_kv_heads,
            c.shape.head_dim,
            c.scale,
            c.shape.sliding_window,
            s.capacity,
            s.k.data(),
            s.v.data(),
            int64_t(s.segments.size()),
            s.segments.data(),
            nullptr,
            nullptr};
}

// How far a device's results are from what they should be.
struct Difference {
    double output = 0, log_sum = 0;
    bool probes = true;  // the query is left where it should be, and nowhere else
};

struct Wanted {
    std::vector<float> out, log_sum;
};

// By the portable code, with the exact path over segments (ZIPCACHE_CPU=ref).
inline Wanted reference(const Case & c, size_t i) {
    const Sequence & s = c.sequences[i];
    const int dim = c.shape.head_dim, n = c.n_heads();
    Wanted want = {std::vector<float>(n * dim), std::vector<float>(n)};
    if (s.n_tokens > 0) {
        const auto layer = layer_of(c, s);
        const float * q = &c.q[i * n * dim];
        std::vector<float> partial(size_t(n) * (dim + 2));
        ggml_zipcache_attend_kv(&layer, q, s.n_tokens, 0, 1, partial.data());
        ggml_zipcache_attend_kv_merge(&layer, partial.data(), 1, want.out.data(), want.log_sum.data());
        ggml_zipcache_attend_kv_ref(&layer, q, s.n_tokens, want.out.data());
    }
    return want;
}

inline std::string described(const Case & c) {
    std::string text = "heads " + std::to_string(c.n_heads()) + "/" + std::to_string(c.shape.n_kv_heads) + " dim " +
                       std::to_string(c.shape.head_dim) + " sliding " + std::to_string(c.shape.sliding_window);
    for (const Sequence & s : c.sequences) {
        text += "\n    window " + std::to_string(s.n_tokens);
        for (size_t i = 0; i < s.samples.size(); ++i) {
            text += "\n    " + described(s.samples[i]) + (s.segments[i].position ? ", partly hidden" : "");
        }
    }
    return text;
}

// What a device made of one sequence of a case. probe_q [2, n_heads, head_dim] and log_sum [2, n_heads] were 0xFF; slot
// 1 is that of the last token.
struct Attended {
    const float * out;
    const uint16_t * probe_q;
    const float * log_sum;
};

inline void compare(const Case & c, size_t i, const Attended & got, Difference & worst) {
    const Wanted want = reference(c, i);
    const int dim = c.shape.head_dim, n = c.n_heads();
    double size = 1;
    for (float x : want.out) {
        size = std::max(size, double(std::fabs(x)));
    }
    for (int j = 0; j < n * dim; ++j) {
        const double off = std::fabs(double(got.out[j]) - want.out[j]) / size;
        worst.output = std::max(worst.output, std::isfinite(off) ? off : INFINITY);
    }
    const bool idle = c.sequences[i].n_tokens == 0;
    for (int j = 0; j < n * dim; ++j) {
        const auto q = ggml_fp32_to_fp16(c.q[i * n * dim + j]);
        worst.probes &= got.probe_q[j] == 0xFFFF && got.probe_q[n * dim + j] == (idle ? 0xFFFF : q);
    }
    for (int j = 0; j < n && !idle; ++j) {
        const double off = std::fabs(got.log_sum[n + j] - want.log_sum[j]);
        worst.log_sum = std::max(worst.log_sum, std::isfinite(off) ? off : INFINITY);
    }
}

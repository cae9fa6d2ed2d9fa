#pragma once
// Segments of random formats, for the tests of every backend.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "ggml-zipcache.h"

// A compressed segment of random rows, and the rows.
struct Sample {
    ggml_zipcache_format format;
    int64_t n_tokens, stride;
    std::vector<ggml_fp16_t> k, v;
    std::vector<float> k_divisor, v_divisor;
    std::vector<uint8_t> tier;
    std::vector<uint8_t> segment;

    ggml_zipcache_rows rows() const {
        return {n_tokens, stride, k.data(), v.data(), k_divisor.data(), v_divisor.data(), tier.data(), nullptr};
    }
    int tier_of(int head, int64_t token) const { return tier[(format.same_order ? 0 : head) * n_tokens + token]; }
    void quantize() {
        const auto r = rows();
        segment.assign(ggml_zipcache_segment_bytes(&format, n_tokens, tier.data()), 0xAA);
        ggml_zipcache_quantize_kv_begin(&format, &r, segment.data());
        for (int head = format.n_kv_heads - 1; head >= 0; --head) {
            ggml_zipcache_quantize_kv_head(&format, &r, head, segment.data());
        }
    }
};

inline ggml_zipcache_side random_side(std::mt19937 & random, const ggml_zipcache_format & f, bool uncoded) {
    ggml_zipcache_side side = {};
    for (int t = 0; t < f.n_tiers; ++t) {
        side.bits[t] = uncoded && random() % 3 == 0 ? 16 : 1 + int(random() % 8);
        side.shrink[t] = random() % 2 ? 1.0f : 0.8f;
    }
    side.scope = static_cast<ggml_zipcache_scope>(random() % 3);
    side.params = random() % 2 ? GGML_ZIPCACHE_PARAMS_F16_PAIR : GGML_ZIPCACHE_PARAMS_F8_PAIR;
    side.block = f.head_dim;
    if (side.scope == GGML_ZIPCACHE_SCOPE_TOKEN) {
        side.params = static_cast<ggml_zipcache_params>(random() % 4);
        side.block = f.head_dim % 32 == 0 && random() % 2 ? 32 : f.head_dim;
        if (f.same_order && random() % 2) {
            side.block = f.n_kv_heads * f.head_dim;
            side.params = GGML_ZIPCACHE_PARAMS_F16_PAIR;
        }
    }
    side.rotate = random() % 2;
    return side;
}

// dim, n_kv_heads: 0 means any. uncoded: some tiers may be of 16 bits.
inline Sample random_sample(std::mt19937 & random, int dim = 0, int n_kv_heads = 0, bool uncoded = false) {
    Sample s = {};
    auto & f = s.format;
    const int dims[] = {8, 16, 24, 64, 80, 96, 128, 256, 20};  // the last is left to the reference
    f.head_dim = dim ? dim : dims[random() % 9];
    f.n_kv_heads = n_kv_heads ? n_kv_heads : 1 + int(random() % 3);
    f.n_tiers = random() % 8 ? 1 + int(random() % 6) : GGML_ZIPCACHE_MAX_TIERS;
    const int groups[] = {64, 64, 32, 8, 40};
    f.group = groups[random() % 5];
    f.same_order = random() % 2;
    uncoded &= random() % 2 == 0;
    f.k = random_side(random, f, uncoded);
    f.v = random_side(random, f, uncoded);
    if (f.n_tiers > 1) {
        f.v.bits[random() % f.n_tiers] = 0;
        if (random() % 2) {  // evicted
            f.k.bits[f.n_tiers - 1] = f.v.bits[f.n_tiers - 1] = 0;
        }
    }
    s.n_tokens = 1 + int64_t(random() % (random() % 4 == 0 ? 10 : f.head_dim > 128 ? 150 : 300));
    s.stride = s.n_tokens + int64_t(random() % 3);
    std::normal_distribution<float> normal;
    // keys have biases; quantized by token, or around zero, they would only measure how badly that goes
    const float bias = f.k.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.0f : 3.0f;
    for (int64_t i = 0; i < f.n_kv_heads * s.stride * f.head_dim; ++i) {
        s.k.push_back(ggml_fp32_to_fp16(bias + normal(random)));
        s.v.push_back(ggml_fp32_to_fp16(normal(random)));
    }
    for (int i = 0; i < f.n_kv_heads * f.head_dim; ++i) {
        s.k_divisor.push_back(0.5f + float(random() % 100) / 50);
        s.v_divisor.push_back(0.5f + float(random() % 100) / 50);
    }
    std::vector<int> tiers;  // those that hold tokens
    for (int t = 0; t < f.n_tiers; ++t) {
        if (random() % 4) {
            tiers.push_back(t);
        }
    }
    if (tiers.empty()) {
        tiers.push_back(int(random() % f.n_tiers));
    }
    for (int64_t i = 0; i < (f.same_order ? 1 : f.n_kv_heads) * s.n_tokens; ++i) {
        s.tier.push_back(uint8_t(tiers[random() % tiers.size()]));
    }
    s.quantize();
    return s;
}

inline std::string described(const Sample & s) {
    auto side = [&](const ggml_zipcache_side & x) {
        std::string text = " bits";
        for (int t = 0; t < s.format.n_tiers; ++t) {
            text += " " + std::to_string(x.bits[t]);
        }
        return text + " scope " + std::to_string(x.scope) + " params " + std::to_string(x.params) + " block " +
               std::to_string(x.block) + (x.rotate ? " rotated" : "");
    };
    return "dim " + std::to_string(s.format.head_dim) + " heads " + std::to_string(s.format.n_kv_heads) + " tokens " +
           std::to_string(s.n_tokens) + " K" + side(s.format.k) + ", V" + side(s.format.v) +
           (s.format.same_order ? ", same order" : "");
}

#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "ggml-zipcache.h"

namespace {

// A compressed segment of random rows, and the rows.
struct Sample {
    ggml_zipcache_format format;
    int64_t n_tokens, stride;
    std::vector<ggml_fp16_t> k, v;
    std::vector<float> k_divisor, v_divisor;
    std::vector<uint8_t> k_tier, v_tier;
    std::vector<uint8_t> segment;

    ggml_zipcache_rows rows() const {
        return {n_tokens, stride, k.data(), v.data(), k_divisor.data(), v_divisor.data(), k_tier.data(), v_tier.data()};
    }
};

ggml_zipcache_side random_side(std::mt19937 & random, int head_dim) {
    ggml_zipcache_side side = {};
    side.n_tiers = 1 + int(random() % 4);
    std::vector<int> bits = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    std::shuffle(bits.begin(), bits.end(), random);
    std::sort(bits.begin(), bits.begin() + side.n_tiers, std::greater<>());
    std::copy_n(bits.begin(), side.n_tiers, side.bits);
    side.scope = static_cast<ggml_zipcache_scope>(random() % 3);
    side.block = head_dim % 32 == 0 && random() % 2 ? 32 : head_dim;
    side.rotate = (head_dim & (head_dim - 1)) == 0 && random() % 2;
    return side;
}

Sample random_sample(std::mt19937 & random) {
    Sample s = {};
    const int dims[] = {8, 16, 24, 64, 80, 128};
    const int dim = s.format.head_dim = dims[random() % 6];
    const int heads = s.format.n_kv_heads = 1 + int(random() % 3);
    s.format.k = random_side(random, dim);
    s.format.v = random_side(random, dim);
    s.n_tokens = 1 + int64_t(random() % 200);
    s.stride = s.n_tokens + int64_t(random() % 3);
    std::normal_distribution<float> normal;
    // keys have biases; quantized by token they would only measure how badly that goes
    const float bias = s.format.k.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.0f : 3.0f;
    for (int64_t i = 0; i < heads * s.stride * dim; ++i) {
        s.k.push_back(ggml_fp32_to_fp16(bias + normal(random)));
        s.v.push_back(ggml_fp32_to_fp16(normal(random)));
    }
    for (int i = 0; i < heads * dim; ++i) {
        s.k_divisor.push_back(0.5f + float(random() % 100) / 50);
        s.v_divisor.push_back(0.5f + float(random() % 100) / 50);
    }
    auto evicts = [](const ggml_zipcache_side & side, int tier) { return side.bits[tier] == 0; };
    for (int64_t i = 0; i < heads * s.n_tokens; ++i) {
        const int k_tier = int(random() % s.format.k.n_tiers);
        int v_tier = int(random() % s.format.v.n_tiers);
        // values without a key are never seen; a format whose values cannot be evicted keeps the key
        if (evicts(s.format.k, k_tier)) {
            v_tier = s.format.v.n_tiers - 1;
        }
        s.k_tier.push_back(
            uint8_t(k_tier > 0 && evicts(s.format.k, k_tier) && !evicts(s.format.v, v_tier) ? 0 : k_tier));
        s.v_tier.push_back(uint8_t(v_tier));
    }
    if (s.format.k.bits[0] == 0) {  // all keys gone: so are the values
        s.format.v = s.format.k;
        std::fill(s.v_tier.begin(), s.v_tier.end(), uint8_t(0));
    }
    const auto rows = s.rows();
    s.segment.resize(ggml_zipcache_quantize_kv(&s.format, &rows, nullptr));
    ggml_zipcache_quantize_kv(&s.format, &rows, s.segment.data());
    return s;
}

// The row of a token in the space in which it is quantized, by the definition of the transform.
std::vector<double> transformed(const ggml_zipcache_side & side, const ggml_fp16_t * row, const float * divisor,
                                int n) {
    std::vector<double> scaled(n), x(n);
    for (int c = 0; c < n; ++c) {
        scaled[c] = double(ggml_fp16_to_fp32(row[c])) / divisor[c];
    }
    for (int c = 0; c < n; ++c) {
        for (int d = 0; side.rotate && d < n; ++d) {
            x[c] += (__builtin_parity(unsigned(c & d)) ? -1 : 1) * scaled[d] / std::sqrt(double(n));
        }
        x[c] = side.rotate ? x[c] : scaled[c];
    }
    return x;
}

// Largest |x - x'| over what it may be: half a step of the widest range that could have been shared.
double worst_share(const Sample & s, bool keys) {
    const auto & f = s.format;
    const auto & side = keys ? f.k : f.v;
    const auto & rows = keys ? s.k : s.v;
    const auto & divisor = keys ? s.k_divisor : s.v_divisor;
    const auto & tiers = keys ? s.k_tier : s.v_tier;
    const int dim = f.head_dim;
    std::vector<ggml_fp16_t> k(rows.size()), v(rows.size());
    ggml_zipcache_dequantize_kv(&f, s.segment.data(), 0, s.n_tokens, s.k_divisor.data(), s.v_divisor.data(), s.stride,
                                k.data(), v.data());
    const auto & got = keys ? k : v;
    double worst = 0;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        std::vector<std::vector<double>> x, y;
        for (int64_t t = 0; t < s.n_tokens; ++t) {
            const int64_t at = (head * s.stride + t) * dim;
            x.push_back(transformed(side, &rows[at], &divisor[head * dim], dim));
            y.push_back(transformed(side, &got[at], &divisor[head * dim], dim));
        }
        auto shares = [&](int64_t t, int c, int64_t u, int d) {  // do two elements share their pair?
            if (tiers[head * s.n_tokens + t] != tiers[head * s.n_tokens + u]) {
                return false;
            }
            switch (side.scope) {
                case GGML_ZIPCACHE_SCOPE_SEGMENT: return c == d;
                case GGML_ZIPCACHE_SCOPE_GROUP: return c == d && t / 64 == u / 64;
                default: return t == u && c / side.block == d / side.block;
            }
        };
        for (int probe = 0; probe < 40; ++probe) {
            const int64_t t = int64_t(std::hash<int>()(probe * 7919) % s.n_tokens);
            const int c = (probe * 31) % dim;
            const int bits = side.bits[tiers[head * s.n_tokens + t]];
            if (bits == 0) {
                worst = std::max(worst, got[(head * s.stride + t) * dim + c] == 0 ? 0.0 : 100.0);
                continue;
            }
            double low = x[t][c], high = low, scale = std::fabs(low);
            for (int64_t u = 0; u < s.n_tokens; ++u) {
                for (int d = 0; d < dim; ++d) {
                    if (shares(t, c, u, d)) {
                        low = std::min(low, x[u][d]);
                        high = std::max(high, x[u][d]);
                    }
                    scale = std::max(scale, u == t ? std::fabs(x[u][d]) : 0.0);
                }
            }
            // f16 keeps 11 bits: of min, scale, and of the row that comes back
            const double allowed = (high - low) / ((1 << bits) - 1) / 2 + 4e-3 * (high - low + scale) + 1e-3;
            worst = std::max(worst, std::fabs(x[t][c] - y[t][c]) / allowed);
        }
    }
    return worst;
}

// Largest difference of the attention output to the reference, relative to the spread of the values. The groups go in
// two parts, behind some tokens that came before.
struct Difference {
    double output = 0, log_sum = 0;
};

enum class Query { normal, one_channel, zero };

Difference attention_difference(const Sample & s, std::mt19937 & random, Query kind = Query::normal) {
    const int dim = s.format.head_dim, n_heads = s.format.n_kv_heads * (1 + int(random() % 6));
    std::normal_distribution<float> normal;
    std::vector<float> q(n_heads * dim);
    for (int i = 0; i < n_heads * dim; ++i) {
        const bool chosen = kind == Query::normal || (kind == Query::one_channel && i % dim == i / dim % dim);
        q[i] = chosen ? normal(random) : 0.0f;
    }
    std::vector<float> want(n_heads * (dim + 2));
    for (int head = 0; head < n_heads; ++head) {
        for (int c = 0; c < dim; ++c) {
            want[head * (dim + 2) + c] = 0.1f * normal(random);
        }
        want[head * (dim + 2) + dim] = 1;
        want[head * (dim + 2) + dim + 1] = 0.5f;
    }
    auto got = want;
    const ggml_zipcache_segment segment = {&s.format, s.segment.data(), s.k_divisor.data(), s.v_divisor.data()};
    const ggml_zipcache_queries queries = {n_heads, 1 / std::sqrt(float(dim)), q.data()};
    const int64_t n_groups = (s.n_tokens + 63) / 64, cut = int64_t(random() % (n_groups + 1));
    ggml_zipcache_attend_segment_ref(&segment, &queries, 0, n_groups, want.data());
    ggml_zipcache_attend_segment(&segment, &queries, 0, cut, got.data());
    ggml_zipcache_attend_segment(&segment, &queries, cut, n_groups, got.data());
    Difference worst;
    for (int head = 0; head < n_heads; ++head) {
        const float * x = &got[head * (dim + 2)];
        const float * y = &want[head * (dim + 2)];
        for (int c = 0; c < dim; ++c) {
            const double a = double(x[c]) / x[dim + 1], b = double(y[c]) / y[dim + 1];
            worst.output = std::max(worst.output, std::isfinite(a) ? std::fabs(a - b) : INFINITY);
        }
        const double log_sum = double(x[dim]) + std::log(x[dim + 1]) - y[dim] - std::log(y[dim + 1]);
        worst.log_sum = std::max(worst.log_sum, std::fabs(log_sum));
    }
    return worst;
}

}  // namespace

std::string described(const Sample & s) {
    auto side = [](const ggml_zipcache_side & x) {
        std::string text = " tiers";
        for (int t = 0; t < x.n_tiers; ++t) {
            text += " " + std::to_string(x.bits[t]);
        }
        return text + " scope " + std::to_string(x.scope) + " block " + std::to_string(x.block) +
               (x.rotate ? " rotated" : "");
    };
    return "dim " + std::to_string(s.format.head_dim) + " tokens " + std::to_string(s.n_tokens) + " K" +
           side(s.format.k) + ", V" + side(s.format.v);
}

TEST(attend_segment_stays_near_the_reference) {
    std::mt19937 random(std::random_device{}());
    constexpr int kCases = 600;
    double total = 0;
    for (int i = 0; i < kCases; ++i) {
        const Sample s = random_sample(random);
        const Difference d = attention_difference(s, random);
        total += d.output;
        // a query and probabilities of 8 bits against random keys of as little as one bit; seen up to 0.2
        if (!(d.output < 0.5 && d.log_sum < 0.5)) {
            test_failed(__FILE__, __LINE__,
                        std::to_string(d.output) + ", " + std::to_string(d.log_sum) + ": " + described(s));
        }
    }
    CHECK(total / kCases < 0.03);  // the worst element of a case, on average
}

TEST(attend_segment_is_exact_where_eight_bits_are) {
    std::mt19937 random(std::random_device{}());
    for (int i = 0; i < 400; ++i) {
        Sample s = random_sample(random);
        // a query of one channel is one int8, rotated or not, unless scales by channel mix with the rotation
        if (s.format.k.scope == GGML_ZIPCACHE_SCOPE_TOKEN || !s.format.k.rotate) {
            const Difference d = attention_difference(s, random, Query::one_channel);
            if (!(d.log_sum < 2e-3)) {
                test_failed(__FILE__, __LINE__, std::to_string(d.log_sum) + ": " + described(s));
            }
        }
        // equal probabilities are one int8, unless scales by token make them differ
        const Difference d = attention_difference(s, random, Query::zero);
        const double tolerance = s.format.v.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.05 : 2e-3;
        if (!(d.output < tolerance && d.log_sum < 1e-3)) {
            test_failed(__FILE__, __LINE__,
                        std::to_string(d.output) + ", " + std::to_string(d.log_sum) + ": " + described(s));
        }
    }
}

TEST(a_segment_keeps_every_element_within_half_a_step) {
    std::mt19937 random(std::random_device{}());
    for (int i = 0; i < 150; ++i) {
        const Sample s = random_sample(random);
        CHECK(ggml_zipcache_format_error(&s.format) == nullptr);
        const double k = worst_share(s, true), v = worst_share(s, false);
        if (!(k <= 1) || !(v <= 1)) {
            test_failed(__FILE__, __LINE__,
                        "dim " + std::to_string(s.format.head_dim) + " tokens " + std::to_string(s.n_tokens) +
                            " K scope " + std::to_string(s.format.k.scope) + ": " + std::to_string(k) + ", V scope " +
                            std::to_string(s.format.v.scope) + ": " + std::to_string(v));
        }
    }
}

TEST(a_part_of_a_segment_dequantizes_like_the_whole) {
    std::mt19937 random(std::random_device{}());
    for (int i = 0; i < 100; ++i) {
        const Sample s = random_sample(random);
        const int64_t first = int64_t(random() % s.n_tokens), n = 1 + int64_t(random() % (s.n_tokens - first));
        const int dim = s.format.head_dim;
        std::vector<ggml_fp16_t> k(s.k.size()), v(s.k.size()), part_k(s.k.size()), part_v(s.k.size());
        ggml_zipcache_dequantize_kv(&s.format, s.segment.data(), 0, s.n_tokens, s.k_divisor.data(), s.v_divisor.data(),
                                    s.stride, k.data(), v.data());
        ggml_zipcache_dequantize_kv(&s.format, s.segment.data(), first, n, s.k_divisor.data(), s.v_divisor.data(),
                                    s.stride, part_k.data(), part_v.data());
        for (int head = 0; head < s.format.n_kv_heads; ++head) {
            const int64_t at = head * s.stride * dim;
            CHECK(std::equal(&part_k[at], &part_k[at] + n * dim, &k[at + first * dim]));
            CHECK(std::equal(&part_v[at], &part_v[at] + n * dim, &v[at + first * dim]));
        }
    }
}

TEST(a_constant_channel_comes_back_exactly) {
    Sample s = {};
    s.format = {
        1, 64, true, {1, {2}, GGML_ZIPCACHE_SCOPE_SEGMENT, 0, false}, {1, {2}, GGML_ZIPCACHE_SCOPE_TOKEN, 64, false}};
    s.n_tokens = s.stride = 5;
    s.k.assign(5 * 64, ggml_fp32_to_fp16(7.5f));
    s.v.assign(5 * 64, ggml_fp32_to_fp16(-0.25f));
    s.k_tier.assign(5, 0);
    const ggml_zipcache_rows rows = {5, 5, s.k.data(), s.v.data(), nullptr, nullptr, s.k_tier.data(), nullptr};
    s.segment.resize(ggml_zipcache_quantize_kv(&s.format, &rows, nullptr));
    ggml_zipcache_quantize_kv(&s.format, &rows, s.segment.data());
    std::vector<ggml_fp16_t> k(s.k.size()), v(s.v.size());
    ggml_zipcache_dequantize_kv(&s.format, s.segment.data(), 0, 5, nullptr, nullptr, 5, k.data(), v.data());
    CHECK(k == s.k && v == s.v);
}

TEST(formats_that_cannot_be_are_named) {
    const ggml_zipcache_side side = {2, {4, 2}, GGML_ZIPCACHE_SCOPE_TOKEN, 64, true};
    const ggml_zipcache_format good = {2, 64, true, side, side};
    CHECK(ggml_zipcache_format_error(&good) == nullptr);
    auto broken = [&](auto change) {
        ggml_zipcache_format f = good;
        change(f);
        return ggml_zipcache_format_error(&f) != nullptr;
    };
    CHECK(broken([](auto & f) { f.head_dim = 0; }));
    CHECK(broken([](auto & f) {
        f.head_dim = 96;
        f.k.block = f.v.block = 96;
    }));
    CHECK(broken([](auto & f) { f.k.n_tiers = 5; }));
    CHECK(broken([](auto & f) { f.k.bits[0] = 9; }));
    CHECK(broken([](auto & f) { f.v.bits[1] = 4; }));
    CHECK(broken([](auto & f) { f.v.block = 48; }));
    CHECK(broken([](auto & f) { f.v.n_tiers = 1; }));
    CHECK(broken([](auto & f) { f.v.bits[1] = 0; }));
}

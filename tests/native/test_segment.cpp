#include <algorithm>
#include <cmath>
#include <random>
#include <thread>

#include "check.h"
#include "segment_sample.h"

namespace {

Sample any_sample(std::mt19937 & random) {
    return random_sample(random, 0, 0, true);
}

// The row of a token in the space in which it is quantized, by the definition of the transform.
std::vector<double> transformed(const ggml_zipcache_side & side, const ggml_fp16_t * row, const float * divisor,
                                int n) {
    std::vector<double> x(n);
    const int size = side.rotate ? n & -n : 1;
    for (int c = 0; c < n; ++c) {
        for (int d = c / size * size; d < (c / size + 1) * size; ++d) {
            const double sign = __builtin_parity(unsigned((c % size) & (d % size))) ? -1 : 1;
            x[c] += sign * double(ggml_fp16_to_fp32(row[d])) / divisor[d] / std::sqrt(double(size));
        }
    }
    return x;
}

struct Rows {
    std::vector<ggml_fp16_t> k, v;
    std::vector<uint8_t> kept;
};

Rows dequantized(const Sample & s, int head, int64_t first, int64_t n) {
    Rows rows = {std::vector<ggml_fp16_t>(n * s.format.head_dim), std::vector<ggml_fp16_t>(n * s.format.head_dim),
                 std::vector<uint8_t>(n)};
    ggml_zipcache_dequantize_kv(&s.format, s.segment.data(), head, first, n, s.k_divisor.data(), s.v_divisor.data(),
                                rows.k.data(), rows.v.data(), rows.kept.data());
    return rows;
}

// Which block of its tier each token lies in.
std::vector<int> blocks_of(const Sample & s, int head) {
    std::vector<int> seen(s.format.n_tiers), block;
    for (int64_t t = 0; t < s.n_tokens; ++t) {
        block.push_back(seen[s.tier_of(head, t)]++ / s.format.group);
    }
    return block;
}

// Largest |x - x'| over what it may be: half a step of the widest range that shares its parameters, and what shrinking
// clips; checked for some elements.
double worst_share(const Sample & s, bool keys) {
    const auto & f = s.format;
    const auto & side = keys ? f.k : f.v;
    const int dim = f.head_dim;
    std::vector<std::vector<std::vector<double>>> x(f.n_kv_heads), y(f.n_kv_heads);
    std::vector<std::vector<int>> block;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        const Rows got = dequantized(s, head, 0, s.n_tokens);
        const float * divisor = (keys ? s.k_divisor : s.v_divisor).data() + head * dim;
        for (int64_t t = 0; t < s.n_tokens; ++t) {
            const auto * row = &(keys ? s.k : s.v)[(head * s.stride + t) * dim];
            x[head].push_back(transformed(side, row, divisor, dim));
            y[head].push_back(transformed(side, &(keys ? got.k : got.v)[t * dim], divisor, dim));
        }
        block.push_back(blocks_of(s, head));
    }
    double worst = 0;
    for (int probe = 0; probe < 60; ++probe) {
        const int head = probe % f.n_kv_heads, c = (probe * 31) % dim;
        const int64_t t = int64_t(std::hash<int>()(probe * 7919) % s.n_tokens);
        const int tier = s.tier_of(head, t), bits = side.bits[tier];
        if (bits == 0) {
            worst = std::max(worst, std::fabs(y[head][t][c]) < 1e-6 ? 0.0 : 100.0);
            continue;
        }
        const bool f8 = side.params >= GGML_ZIPCACHE_PARAMS_F8_PAIR;
        auto shares = [&](int h, int64_t u, int d) {
            const bool same_tier = s.tier_of(h, u) == tier;
            switch (side.scope) {
                case GGML_ZIPCACHE_SCOPE_SEGMENT:
                    return h == head && c == d && (f8 || same_tier) && f.k.bits[s.tier_of(h, u)] > 0;
                case GGML_ZIPCACHE_SCOPE_GROUP:
                    return h == head && c == d && same_tier && block[head][u] == block[head][t];
                default: return u == t && (side.block > dim || (h == head && c / side.block == d / side.block));
            }
        };
        const bool by_token = side.scope == GGML_ZIPCACHE_SCOPE_TOKEN;
        double low = x[head][t][c], high = low, scale = 0;
        for (double value : x[head][t]) {
            scale = std::max(scale, std::fabs(value));
        }
        for (int h = 0; h < f.n_kv_heads; ++h) {
            for (int64_t u = by_token ? t : 0; u < (by_token ? t + 1 : s.n_tokens); ++u) {
                for (int d = by_token ? 0 : c; d < (by_token ? dim : c + 1); ++d) {
                    if (shares(h, u, d)) {
                        low = std::min(low, x[h][u][d]);
                        high = std::max(high, x[h][u][d]);
                    }
                }
            }
        }
        double range = high - low, shrink = 1;
        if (side.params == GGML_ZIPCACHE_PARAMS_F16_SCALE || side.params == GGML_ZIPCACHE_PARAMS_F8_SCALE) {
            range = 2 * std::max(std::fabs(high), std::fabs(low));
        }
        if (by_token && side.params == GGML_ZIPCACHE_PARAMS_F8_PAIR) {  // a middle is less than half a range from 0
            range = std::max(range, std::max(std::fabs(high), std::fabs(low)) * 256 / 255);
        }
        if (f8) {  // 4 mantissa bits, and a middle that may be off
            range *= 1.07 + 2.0 / 127;
            range += 2 * 3.5 * 2.5 / 127;
            shrink = side.shrink[tier];
        }
        // llama.cpp's scales leave out one level on one side
        const double steps =
            side.params == GGML_ZIPCACHE_PARAMS_F16_SCALE ? (1 << bits) - (bits == 8 ? 2 : 0) : (1 << bits) - 1;
        const double missing = side.params == GGML_ZIPCACHE_PARAMS_F16_SCALE && bits < 8 ? range / steps : 0;
        // f16 keeps 11 bits: of min, scale, and of the row that comes back
        const double allowed =
            range * shrink / steps / 2 + range * (1 - shrink) / 2 + missing + 4e-3 * (range + scale) + 1e-3;
        worst = std::max(worst, std::fabs(x[head][t][c] - y[head][t][c]) / allowed);
    }
    return worst;
}

enum class Query { normal, one_channel, zero };

struct Difference {
    double output = 0, log_sum = 0;
    double splits = 0;  // of the log sums, between one split and several
};

// log sum exp of a head's logits by its definition, over the dequantized rows: all of the segment twice, some of them
// once more, and the window.
double plain_log_sum(const Sample & s, const float * q, int kv_head, const ggml_zipcache_segment & part,
                     int64_t n_window) {
    const int dim = s.format.head_dim;
    const Rows rows = dequantized(s, kv_head, 0, s.n_tokens);
    auto weight = [&](const ggml_fp16_t * k) {
        double dot = 0;
        for (int c = 0; c < dim; ++c) {
            dot += double(q[c]) * ggml_fp16_to_fp32(k[c]);
        }
        return std::exp(dot / std::sqrt(double(dim)));
    };
    double sum = 0;
    for (int64_t t = 0; t < s.n_tokens; ++t) {
        const int times = rows.kept[t] ? 2 + (t >= part.first_seen && t < part.last_seen) : 0;
        sum += times * weight(&rows.k[t * dim]);
        sum += t < n_window ? weight(&s.k[(kv_head * s.stride + t) * dim]) : 0;
    }
    return std::log(sum);
}

// Largest difference of attend_kv to its reference over two segments and a window, some tokens hidden.
Difference attention_difference(const Sample & s, std::mt19937 & random, Query kind = Query::normal) {
    const auto & f = s.format;
    const int dim = f.head_dim, n_heads = f.n_kv_heads * (1 + int(random() % 6));
    std::normal_distribution<float> normal;
    std::vector<float> q(n_heads * dim);
    for (int i = 0; i < n_heads * dim; ++i) {
        const bool chosen = kind == Query::normal || (kind == Query::one_channel && i % dim == i / dim % dim);
        q[i] = chosen ? normal(random) : 0.0f;
    }
    const int64_t n_places = ggml_zipcache_segment_places(&f, s.segment.data());
    std::vector<uint16_t> position(f.n_kv_heads * n_places);
    ggml_zipcache_segment_positions(&f, s.segment.data(), position.data());
    ggml_zipcache_segment whole = {&f, s.segment.data(), s.k_divisor.data(), s.v_divisor.data(), nullptr, 0, 0,
                                   0,  nullptr};
    ggml_zipcache_segment part = whole;
    part.position = position.data();
    part.n_places = n_places;
    part.first_seen = int64_t(random() % (s.n_tokens + 1));
    part.last_seen = part.first_seen + int64_t(random() % (s.n_tokens + 1 - part.first_seen));
    const ggml_zipcache_segment segments[] = {whole, part, whole};
    const int64_t n_window = 1 + int64_t(random() % 5);
    ggml_zipcache_layer layer = {n_heads, f.n_kv_heads, dim,        1 / std::sqrt(float(dim)),
                                 0,       s.stride,     s.k.data(), s.v.data(),
                                 3,       segments,     nullptr,    nullptr};
    const int64_t seen = std::min(n_window, s.n_tokens);
    const int n_splits = 1 + int(random() % 5);
    std::vector<float> partial(size_t(n_splits) * n_heads * (dim + 2)), got(q.size()), want(q.size());
    std::vector<float> log_sums[2];
    for (int splits : {1, n_splits}) {
        for (int split = 0; split < splits; ++split) {
            ggml_zipcache_attend_kv(&layer, q.data(), seen, split, splits, partial.data());
        }
        auto & log_sum = log_sums[splits == 1 ? 0 : 1];
        log_sum.resize(n_heads);
        ggml_zipcache_attend_kv_merge(&layer, partial.data(), splits, got.data(), log_sum.data());
    }
    ggml_zipcache_attend_kv_ref(&layer, q.data(), seen, want.data());
    Difference worst;
    for (size_t i = 0; i < want.size(); ++i) {
        worst.output = std::max(worst.output, std::isfinite(got[i]) ? std::fabs(double(got[i]) - want[i]) : INFINITY);
    }
    for (int i = 0; i < n_heads; ++i) {
        if (n_splits > 1) {
            worst.splits = std::max(worst.splits, std::fabs(double(log_sums[0][i]) - log_sums[1][i]));
        }
        const double plain = plain_log_sum(s, &q[size_t(i) * dim], i / (n_heads / f.n_kv_heads), part, seen);
        worst.log_sum = std::max(worst.log_sum, std::fabs(log_sums[0][i] - plain));
    }
    return worst;
}

void fail(const Sample & s, const std::string & what) {
    test_failed(__FILE__, __LINE__, what + ": " + described(s));
}

}  // namespace

TEST(attend_kv_over_segments_stays_near_the_reference) {
    std::mt19937 random(test_seed());
    const int cases = n_cases(400);
    double total = 0, total_log_sum = 0, most = 0, most_log_sum = 0;
    for (int i = 0; i < cases; ++i) {
        const Sample s = any_sample(random);
        const Difference d = attention_difference(s, random);
        total += d.output;
        total_log_sum += d.log_sum;
        most = std::max(most, d.output);
        most_log_sum = std::max(most_log_sum, d.log_sum);
        // a query and probabilities of 8 bits against random keys and values of as little as one bit: 0.2 in hundreds
        // of cases, 0.75 in ten thousand
        if (!(d.output < 1 && d.log_sum < 0.25 && d.splits < 1e-3)) {
            fail(s, std::to_string(d.output) + ", log sum " + std::to_string(d.log_sum) + ", splits " +
                        std::to_string(d.splits));
        }
    }
    // of the worst elements of the cases
    std::printf(
        "  attend_kv over segments, %d cases: output off by %.4f on average, at most %.4f; log sum %.4f, %.4f\n", cases,
        total / cases, most, total_log_sum / cases, most_log_sum);
    CHECK(total / cases < 0.03);
    CHECK(total_log_sum / cases < 0.02);
}

TEST(attend_kv_over_segments_is_exact_where_eight_bits_are) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(300); ++i) {
        Sample s = any_sample(random);
        // equal probabilities are one int8, unless scales by token make them differ
        const Difference d = attention_difference(s, random, Query::zero);
        const double tolerance = s.format.v.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.05 : 2e-3;
        if (!(d.output < tolerance && d.log_sum < 1e-3)) {
            fail(s, std::to_string(d.output) + ", log sum " + std::to_string(d.log_sum));
        }
    }
}

// All channels of the query but one round down by 0.4 of a step. Unless what an average code loses by that is added
// back, every logit is off by 0.2.
TEST(attend_kv_adds_back_what_rounding_takes_on_average) {
    constexpr int dim = 64;
    std::mt19937 random(test_seed());
    std::uniform_real_distribution<float> uniform(-1, 1);
    std::vector<float> q(dim, 8 * 40.4f / 127);
    q[0] = 8;
    for (auto scope : {GGML_ZIPCACHE_SCOPE_SEGMENT, GGML_ZIPCACHE_SCOPE_GROUP, GGML_ZIPCACHE_SCOPE_TOKEN}) {
        Sample s = {};
        const ggml_zipcache_side side = {{4}, {1}, scope, GGML_ZIPCACHE_PARAMS_F16_PAIR, dim, false};
        s.format = {1, dim, 64, 1, true, side, side};
        s.n_tokens = s.stride = 256;
        for (int64_t i = 0; i < s.n_tokens * dim; ++i) {
            s.k.push_back(ggml_fp32_to_fp16(uniform(random)));
            s.v.push_back(ggml_fp32_to_fp16(uniform(random)));
        }
        s.tier.assign(s.n_tokens, 0);
        s.k_divisor.assign(dim, 1.0f);
        s.v_divisor.assign(dim, 1.0f);
        s.quantize();
        const ggml_zipcache_segment whole = {
            &s.format, s.segment.data(), s.k_divisor.data(), s.v_divisor.data(), nullptr, 0, 0, 0, nullptr};
        const ggml_zipcache_segment segments[] = {whole, whole};
        const ggml_zipcache_layer layer = {
            1, 1, dim, 1 / std::sqrt(float(dim)), 0, s.stride, s.k.data(), s.v.data(), 2, segments, nullptr, nullptr};
        std::vector<float> partial(dim + 2), got(dim);
        float log_sum = 0;
        ggml_zipcache_attend_kv(&layer, q.data(), 1, 0, 1, partial.data());
        ggml_zipcache_attend_kv_merge(&layer, partial.data(), 1, got.data(), &log_sum);
        const double want = plain_log_sum(s, q.data(), 0, {}, 1);
        CHECK(std::fabs(log_sum - want) < 0.05);
    }
}

// As ggml's threads do; the sanitizer's build looks for races.
TEST(heads_and_splits_run_side_by_side) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(40); ++i) {
        Sample s = any_sample(random);
        const auto & f = s.format;
        const auto in_turn = s.segment;
        auto side_by_side = [](int n, auto task) {
            std::vector<std::thread> threads;
            threads.reserve(n);
            for (int j = 0; j < n; ++j) {
                threads.emplace_back([&task, j] { task(j); });
            }
            for (auto & thread : threads) {
                thread.join();
            }
        };
        const auto rows = s.rows();
        ggml_zipcache_quantize_kv_begin(&f, &rows, s.segment.data());
        side_by_side(f.n_kv_heads,
                     [&](int head) { ggml_zipcache_quantize_kv_head(&f, &rows, head, s.segment.data()); });
        CHECK(s.segment == in_turn);

        const int dim = f.head_dim, n_heads = 2 * f.n_kv_heads, n_splits = 4;
        std::vector<float> q(n_heads * dim, 0.5f), partial(n_splits * n_heads * (dim + 2)), again(partial.size());
        const ggml_zipcache_segment whole = {
            &f, s.segment.data(), s.k_divisor.data(), s.v_divisor.data(), nullptr, 0, 0, 0, nullptr};
        const ggml_zipcache_segment segments[] = {whole, whole};
        const ggml_zipcache_layer layer = {n_heads,    f.n_kv_heads, dim, 0.1f,     0,       s.stride,
                                           s.k.data(), s.v.data(),   2,   segments, nullptr, nullptr};
        side_by_side(n_splits, [&](int split) {
            ggml_zipcache_attend_kv(&layer, q.data(), s.n_tokens, split, n_splits, partial.data());
        });
        for (int split = 0; split < n_splits; ++split) {
            ggml_zipcache_attend_kv(&layer, q.data(), s.n_tokens, split, n_splits, again.data());
        }
        CHECK(partial == again);
    }
}

TEST(a_segment_keeps_every_element_within_half_a_step) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(150); ++i) {
        const Sample s = any_sample(random);
        CHECK(ggml_zipcache_format_error(&s.format) == nullptr);
        const double k = worst_share(s, true), v = worst_share(s, false);
        if (!(k <= 1) || !(v <= 1)) {
            fail(s, "K " + std::to_string(k) + ", V " + std::to_string(v));
        }
    }
}

TEST(a_part_of_a_segment_dequantizes_like_the_whole) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(100); ++i) {
        const Sample s = any_sample(random);
        const int64_t first = int64_t(random() % s.n_tokens), n = 1 + int64_t(random() % (s.n_tokens - first));
        const int head = int(random() % s.format.n_kv_heads), dim = s.format.head_dim;
        const Rows whole = dequantized(s, head, 0, s.n_tokens), part = dequantized(s, head, first, n);
        CHECK(std::equal(part.k.begin(), part.k.end(), whole.k.begin() + first * dim));
        CHECK(std::equal(part.v.begin(), part.v.end(), whole.v.begin() + first * dim));
        for (int64_t t = 0; t < s.n_tokens; ++t) {
            CHECK(whole.kept[t] == (s.format.k.bits[s.tier_of(head, t)] > 0));
        }
    }
}

TEST(equal_rows_give_equal_bytes_and_damage_is_named) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        Sample s = any_sample(random);
        const auto before = s.segment;
        s.quantize();
        CHECK(s.segment == before);
        CHECK(ggml_zipcache_segment_error(&s.format, s.n_tokens, before.data(), before.size()) == nullptr);
        for (int j = 0; j < 20; ++j) {  // whatever passes must be safe to read
            auto bytes = before;
            for (int b = 0; b < 3; ++b) {
                bytes[random() % std::min<size_t>(bytes.size(), j % 2 ? 400 : bytes.size())] = uint8_t(random());
            }
            bytes.resize(j % 5 == 0 ? random() % bytes.size() : bytes.size());
            if (!ggml_zipcache_segment_error(&s.format, s.n_tokens, bytes.data(), bytes.size())) {
                s.segment = bytes;
                attention_difference(s, random);
                dequantized(s, 0, 0, s.n_tokens);
            }
        }
    }
}

TEST(a_constant_channel_comes_back_exactly) {
    for (auto params : {GGML_ZIPCACHE_PARAMS_F16_PAIR, GGML_ZIPCACHE_PARAMS_F8_PAIR}) {
        Sample s = {};
        s.format = {1,
                    64,
                    64,
                    1,
                    true,
                    {{2}, {1}, GGML_ZIPCACHE_SCOPE_SEGMENT, params, 0, false},
                    {{2}, {1}, GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F16_PAIR, 64, false}};
        s.n_tokens = s.stride = 5;
        s.k.assign(5 * 64, ggml_fp32_to_fp16(7.5f));
        s.v.assign(5 * 64, ggml_fp32_to_fp16(-0.25f));
        s.tier.assign(5, 0);
        s.k_divisor.assign(64, 1.0f);
        s.v_divisor.assign(64, 1.0f);
        s.quantize();
        const Rows rows = dequantized(s, 0, 0, 5);
        CHECK(rows.k == s.k && rows.v == s.v);
    }
}

TEST(formats_that_cannot_be_are_named) {
    const ggml_zipcache_side side = {{4, 2}, {1, 1}, GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F16_PAIR,
                                     64,     true};
    const ggml_zipcache_format good = {2, 64, 64, 2, true, side, side};
    CHECK(ggml_zipcache_format_error(&good) == nullptr);
    auto broken = [&](auto change) {
        ggml_zipcache_format f = good;
        change(f);
        return ggml_zipcache_format_error(&f) != nullptr;
    };
    CHECK(broken([](auto & f) { f.head_dim = 0; }));
    CHECK(broken([](auto & f) { f.group = 65; }));
    CHECK(broken([](auto & f) { f.n_tiers = 13; }));
    CHECK(broken([](auto & f) { f.k.bits[0] = 9; }));
    CHECK(broken([](auto & f) { f.k.bits[1] = 0; }));
    CHECK(broken([](auto & f) { f.v.block = 48; }));
    CHECK(broken([](auto & f) {
        f.v.block = 128;
        f.same_order = false;
    }));
    CHECK(broken([](auto & f) {
        f.k.scope = GGML_ZIPCACHE_SCOPE_GROUP;
        f.k.params = GGML_ZIPCACHE_PARAMS_F8_SCALE;
    }));
    CHECK(broken([](auto & f) {
        f.v.params = GGML_ZIPCACHE_PARAMS_F8_PAIR;
        f.v.shrink[1] = 0;
    }));
}

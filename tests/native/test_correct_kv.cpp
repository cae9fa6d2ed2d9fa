#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "check.h"
#include "segment_sample.h"

namespace {

// Rows as GEAR quantizes them: channelwise keys, tokenwise values, one tier.
struct Corrected {
    Sample s;  // its k and v: with the outliers drawn in
    std::vector<ggml_fp16_t> k, v;
    std::vector<uint8_t> k_mark, v_mark, correction;
    int rank;
    float share;

    ggml_zipcache_rows rows() const {
        return {s.n_tokens, s.stride, k.data(), v.data(), nullptr, nullptr, s.tier.data(), nullptr};
    }
    bool valid(const std::vector<uint8_t> & bytes) const {
        return ggml_zipcache_correction_error(&s.format, s.n_tokens, bytes.data(), bytes.size()) == nullptr;
    }
};

Corrected random_correction(std::mt19937 & random, int rank, float share) {
    Corrected x = {};
    Sample & s = x.s;
    auto & f = s.format;
    const int dims[] = {8, 20, 64, 96, 128}, groups[] = {64, 32, 8, 40};
    const int heads = 1 + int(random() % 3), dim = dims[random() % 5], bits = random() % 2 ? 4 : 2;
    f = {heads,
         dim,
         groups[random() % 4],
         1,
         true,
         {{bits}, {1}, GGML_ZIPCACHE_SCOPE_SEGMENT, GGML_ZIPCACHE_PARAMS_F16_PAIR, 0, false},
         {{bits}, {1}, GGML_ZIPCACHE_SCOPE_TOKEN, GGML_ZIPCACHE_PARAMS_F16_PAIR, heads * dim, false}};
    s.n_tokens = s.stride = 1 + int64_t(random() % 200);
    std::student_t_distribution<float> tails(4);
    for (int64_t i = 0; i < heads * s.n_tokens * dim; ++i) {
        x.k.push_back(ggml_fp32_to_fp16(tails(random) + float(i % dim % 3)));
        x.v.push_back(ggml_fp32_to_fp16(tails(random)));
    }
    s.tier.assign(s.n_tokens, 0);
    s.k_divisor.assign(heads * dim, 1.0f);
    s.v_divisor.assign(heads * dim, 1.0f);
    s.k.resize(x.k.size());
    s.v.resize(x.v.size());
    x.k_mark.resize(x.k.size());
    x.v_mark.resize(x.v.size());
    x.rank = rank;
    x.share = share;
    const auto rows = x.rows();
    ggml_zipcache_mark_outliers(&f, &rows, share, s.k.data(), s.v.data(), x.k_mark.data(), x.v_mark.data());
    s.quantize();
    x.correction.assign(ggml_zipcache_correction_bytes(&f, s.n_tokens, rank, share), 0xAA);
    ggml_zipcache_correct_kv_begin(&f, s.n_tokens, rank, x.k_mark.data(), x.v_mark.data(), x.correction.data());
    for (int head = heads - 1; head >= 0; --head) {
        ggml_zipcache_correct_kv_head(&f, &rows, s.segment.data(), x.k_mark.data(), x.v_mark.data(), head,
                                      x.correction.data());
    }
    return x;
}

struct Difference {
    double error = 0;     // sum of squares beside the rows, outliers aside
    double outliers = 0;  // largest at an outlier
};

Difference difference(const Corrected & x, bool corrected) {
    const auto & s = x.s;
    const int64_t size = s.n_tokens * s.format.head_dim;
    std::vector<ggml_fp16_t> k(size), v(size);
    Difference sum;
    auto take = [&](ggml_fp16_t got, ggml_fp16_t want, bool outlier) {
        const double value = ggml_fp16_to_fp32(want), off = std::fabs(ggml_fp16_to_fp32(got) - value);
        sum.error += outlier ? 0 : off * off;
        sum.outliers = std::max(sum.outliers, outlier ? off / (1 + std::fabs(value)) : 0);
    };
    for (int head = 0; head < s.format.n_kv_heads; ++head) {
        ggml_zipcache_dequantize_kv(&s.format, s.segment.data(), head, 0, s.n_tokens, nullptr, nullptr, k.data(),
                                    v.data(), nullptr);
        if (corrected) {
            ggml_zipcache_correct_rows(&s.format, x.correction.data(), head, 0, s.n_tokens, k.data(), v.data());
        }
        for (int64_t i = 0; i < size; ++i) {
            const int64_t at = head * size + i;
            take(k[i], x.k[at], x.k_mark[at]);
            take(v[i], x.v[at], x.v_mark[at]);
        }
    }
    return sum;
}

}  // namespace

TEST(outliers_are_the_ends_of_what_shares_parameters) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(40); ++i) {
        const Corrected x = random_correction(random, 0, i % 4 == 0 ? 0.0f : 0.02f + float(random() % 10) / 100);
        const int64_t n = x.s.n_tokens, dim = x.s.format.head_dim, width = x.s.format.n_kv_heads * dim;
        auto check = [&](int64_t size, auto at, const auto & before, const auto & after, const auto & mark) {
            const auto each = std::min<int64_t>(std::llround(double(x.share) / 2 * double(size)), (size - 1) / 2);
            float low = INFINITY, high = -INFINITY;
            for (int64_t j = 0; j < size; ++j) {
                const float value = ggml_fp16_to_fp32(before[at(j)]);
                low = mark[at(j)] ? low : std::min(low, value);
                high = mark[at(j)] ? high : std::max(high, value);
            }
            int64_t n_low = 0, n_high = 0;
            for (int64_t j = 0; j < size; ++j) {
                const float value = ggml_fp16_to_fp32(before[at(j)]), drawn = ggml_fp16_to_fp32(after[at(j)]);
                CHECK(mark[at(j)] ? drawn == low || drawn == high : drawn == value);
                CHECK(!mark[at(j)] || value <= low || value >= high);
                n_low += mark[at(j)] && drawn == low;
                n_high += mark[at(j)] && drawn == high && high > low;
            }
            CHECK(low == high || (n_low == each && n_high == each));
        };
        for (int64_t c = 0; c < width; ++c) {
            check(n, [&](int64_t t) { return (c / dim * n + t) * dim + c % dim; }, x.k, x.s.k, x.k_mark);
        }
        for (int64_t t = 0; t < n; ++t) {
            check(width, [&](int64_t c) { return (c / dim * n + t) * dim + c % dim; }, x.v, x.s.v, x.v_mark);
        }
    }
}

TEST(a_correction_brings_rows_nearer_and_outliers_back) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        const int rank = int(random() % 6);
        const Corrected x = random_correction(random, rank, 0.05f);
        CHECK(x.valid(x.correction));
        const Difference before = difference(x, false), after = difference(x, true);
        CHECK(after.outliers < 2e-3);  // f16 of what the codes are off by
        // each direction is one of the largest of at most head_dim
        const double share = std::min(1.0, double(rank) / x.s.format.head_dim);
        CHECK(after.error <= before.error * (1 - 0.9 * share) + 1e-3 * before.error + 1e-3);
    }
}

TEST(a_correction_of_full_rank_is_exact) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(30); ++i) {
        const Corrected x = random_correction(random, GGML_ZIPCACHE_MAX_RANK, 0.02f);
        if (x.s.format.head_dim <= GGML_ZIPCACHE_MAX_RANK || x.s.n_tokens <= 4) {
            CHECK(difference(x, true).error <= 1e-4 * difference(x, false).error + 1e-4);
        }
    }
}

TEST(attend_kv_over_corrected_segments_stays_near_the_reference) {
    std::mt19937 random(test_seed());
    std::normal_distribution<float> normal;
    double total = 0;
    const int cases = n_cases(120);
    for (int i = 0; i < cases; ++i) {
        const Corrected x = random_correction(random, int(random() % 6), 0.02f);
        const auto & f = x.s.format;
        const int dim = f.head_dim, n_heads = f.n_kv_heads * (1 + int(random() % 6));
        const int64_t n = x.s.n_tokens, n_places = ggml_zipcache_segment_places(&f, x.s.segment.data());
        std::vector<uint16_t> position(f.n_kv_heads * n_places);
        ggml_zipcache_segment_positions(&f, x.s.segment.data(), position.data());
        const ggml_zipcache_segment whole = {&f, x.s.segment.data(), nullptr, nullptr, nullptr, 0, 0,
                                             n,  x.correction.data()};
        ggml_zipcache_segment part = whole;
        part.position = position.data();
        part.n_places = n_places;
        part.first_seen = int64_t(random() % n);
        part.last_seen = n;
        ggml_zipcache_segment plain = whole;
        plain.correction = nullptr;
        const ggml_zipcache_segment segments[] = {whole, plain, part};
        const ggml_zipcache_layer layer = {
            n_heads,  f.n_kv_heads, dim,    1 / std::sqrt(float(dim)), 0, n, x.k.data(), x.v.data(), 3,
            segments, nullptr,      nullptr};
        std::vector<float> q(n_heads * dim), got(q.size()), want(q.size());
        std::generate(q.begin(), q.end(), [&] { return normal(random); });
        const int n_splits = 1 + int(random() % 3);
        std::vector<float> partial(size_t(n_splits) * n_heads * (dim + 2));
        for (int split = 0; split < n_splits; ++split) {
            ggml_zipcache_attend_kv(&layer, q.data(), 1, split, n_splits, partial.data());
        }
        ggml_zipcache_attend_kv_merge(&layer, partial.data(), n_splits, got.data(), nullptr);
        ggml_zipcache_attend_kv_ref(&layer, q.data(), 1, want.data());
        double worst = 0;
        for (size_t j = 0; j < want.size(); ++j) {
            worst = std::max(worst, std::isfinite(got[j]) ? std::fabs(double(got[j]) - want[j]) : INFINITY);
        }
        CHECK(worst < 1);
        total += worst;
    }
    CHECK(total / cases < 0.06);  // heavy tails; query and probabilities are rounded to 8 bits where they meet codes
}

TEST(damaged_corrections_are_named) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        const Corrected x = random_correction(random, int(random() % 4), 0.04f);
        const auto & f = x.s.format;
        std::vector<ggml_fp16_t> k(x.s.n_tokens * f.head_dim), v(k.size());
        for (int j = 0; j < 40; ++j) {
            auto bytes = x.correction;
            for (int b = 0; b < 3; ++b) {
                bytes[random() % std::min<size_t>(bytes.size(), j % 2 ? 60 : bytes.size())] = uint8_t(random());
            }
            bytes.resize(j % 5 == 0 ? random() % bytes.size() : bytes.size());
            if (x.valid(bytes)) {  // whatever passes must be safe to read
                ggml_zipcache_correct_rows(&f, bytes.data(), 0, 0, x.s.n_tokens, k.data(), v.data());
            }
        }
    }
}

#include <cmath>
#include <random>

#include "check.h"
#include "ggml-zipcache.h"

namespace {

// Packed rows of a random weight, by ggml's own quantizers.
std::vector<uint8_t> packed_rows(ggml_type type, int64_t m, int64_t k, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    std::vector<float> rows(m * k);
    for (float & x : rows) {
        x = normal(random);
    }
    const std::vector<float> importance(k, 1.0f);
    std::vector<uint8_t> packed(m * ggml_row_size(type, k));
    ggml_quantize_chunk(type, rows.data(), packed.data(), 0, m, k, importance.data());
    return packed;
}

// Largest difference to the reference over sqrt(k): products have unit scale. The rows go in two parts.
double difference(ggml_type type, int64_t m, int64_t k, int64_t n, std::mt19937 & random) {
    std::normal_distribution<float> normal;
    const auto weight = packed_rows(type, m, k, random);
    std::vector<float> x(n * (k + 3));
    for (float & value : x) {
        value = normal(random);
    }
    std::vector<float> got(n * (m + 2), NAN), want(n * (m + 2), NAN);
    ggml_zipcache_mul_mat_args args = {type,        weight.data(), ggml_row_size(type, k), k, m, n, x.data(), k + 3,
                                       want.data(), m + 2};
    ggml_zipcache_mul_mat_ref(&args, 0, m);
    args.y = got.data();
    const int64_t cut = int64_t(random() % (m + 1));
    ggml_zipcache_mul_mat(&args, 0, cut);
    ggml_zipcache_mul_mat(&args, cut, m);
    double worst = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        if (std::isnan(want[i]) != std::isnan(got[i])) {
            return INFINITY;  // wrote where it must not, or did not where it must
        }
        worst = std::isnan(want[i]) ? worst : std::max(worst, std::fabs(double(got[i]) - want[i]));
    }
    return worst / std::sqrt(double(k));
}

constexpr double kTolerance = 1e-5;  // float sums of up to 1,500 terms

}  // namespace

TEST(mul_mat_matches_the_reference_for_every_type) {
    std::mt19937 random(1);
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const auto type = static_cast<ggml_type>(i);
        const bool is_float = type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
        if (!is_float && !(ggml_is_quantized(type) && ggml_get_type_traits(type)->to_float)) {
            continue;
        }
        const double worst = difference(type, 70, 512, 37, random);
        if (worst >= kTolerance) {
            test_failed(__FILE__, __LINE__, std::string(ggml_type_name(type)) + ": " + std::to_string(worst));
        }
    }
}

TEST(mul_mat_matches_the_reference_on_random_shapes) {
    std::mt19937 random(test_seed());
    const ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0};
    for (int i = 0; i < n_cases(200); ++i) {
        const ggml_type type = types[random() % 5];
        const int64_t block = ggml_blck_size(type);
        const int64_t k = (1 + int64_t(random() % (1500 / block))) * block;
        const int64_t m = 1 + int64_t(random() % 80), n = 1 + int64_t(random() % 40);
        const double worst = difference(type, m, k, n, random);
        if (worst >= kTolerance) {
            test_failed(__FILE__, __LINE__,
                        std::string(ggml_type_name(type)) + " m " + std::to_string(m) + " k " + std::to_string(k) +
                            " n " + std::to_string(n) + ": " + std::to_string(worst));
        }
    }
}

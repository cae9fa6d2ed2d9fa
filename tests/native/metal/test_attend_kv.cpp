#include "attend_case.h"
#include "check.h"

namespace {

// Keys, queries, values and probabilities are rounded to f16. Products of rotated keys, whose bias is in one channel,
// come to 60 before others cancel them: an ulp of 11 bits is 0.03 of that, and its errors add up at random.
constexpr double kTolerance = 1e-2, kLogSumTolerance = 1e-2;

void check_case(const Case & c, const Difference & worst, Difference & most) {
    const bool right = worst.output < kTolerance && worst.log_sum < kLogSumTolerance && worst.probes;
    CHECK(right);
    if (!right) {
        std::printf("  %g, log sum %g, probes %d: %s\n", worst.output, worst.log_sum, int(worst.probes),
                    described(c).c_str());
    }
    most.output = std::max(most.output, worst.output);
    most.log_sum = std::max(most.log_sum, worst.log_sum);
}

}  // namespace

TEST(metal_attend_kv_matches_the_reference) {
    std::mt19937 random(test_seed());
    Difference most;
    for (int i = 0; i < n_cases(25); ++i) {
        const Case c = random_case(random);
        Buffers buffers;
        const OnDevice d = put_case(buffers, c, 1 + int(random() % 16));
        Difference worst;
        attend(c, d, worst);
        check_case(c, worst, most);
    }
    std::printf("  attend_kv: output off by at most %.2g of its largest, log sum by %.2g\n", most.output, most.log_sum);
}

// Every pair of bits at every head_dim, in the formats of the policies.
TEST(metal_attend_kv_reads_every_pair_of_bits) {
    std::mt19937 random(test_seed());
    Difference most;
    const int dims[] = {64, 80, 96, 128, 256}, bits[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    int number = 0;
    for (int k_bits : {1, 2, 3, 4, 5, 6, 7, 8}) {
        for (int v_bits : bits) {
            Case c;
            c.shape = {dims[number++ % 5], 1, 1 + int(random() % 9), 0};
            c.scale = 1 / std::sqrt(float(c.shape.head_dim));
            Sequence & s = c.sequences.emplace_back();
            s.samples.push_back(random_sample(random, c.shape.head_dim, 1));
            Sample & x = s.samples[0];
            x.format.n_tiers = 1;
            std::fill(x.tier.begin(), x.tier.end(), uint8_t(0));
            x.format.k.bits[0] = k_bits;
            x.format.v.bits[0] = v_bits;
            make_common(x, random);
            s.position.resize(1);
            s.segments.push_back(
                {&x.format, x.segment.data(), x.k_divisor.data(), x.v_divisor.data(), nullptr, 0, 0, 0, nullptr});
            s.n_tokens = 1;
            s.capacity = 3;
            std::normal_distribution<float> normal;
            for (int64_t i = 0; i < s.capacity * c.shape.head_dim; ++i) {
                s.k.push_back(ggml_fp32_to_fp16(normal(random)));
                s.v.push_back(ggml_fp32_to_fp16(normal(random)));
            }
            for (int i = 0; i < c.n_heads() * c.shape.head_dim; ++i) {
                c.q.push_back(normal(random));
            }
            Buffers buffers;
            Difference worst;
            attend(c, put_case(buffers, c, 2), worst);
            check_case(c, worst, most);
        }
    }
}

// New tokens go to the window, and the lengths are read when the kernels run.
TEST(metal_append_kv_stores_the_token_that_is_attended_to) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(6); ++i) {
        Case c = random_case(random);
        Buffers buffers;
        const OnDevice d = put_case(buffers, c, 4);
        const int dim = c.shape.head_dim, n_kv = c.shape.n_kv_heads;
        const size_t n = c.sequences.size() * n_kv * dim;
        auto *k = buffers.room<float>(n), *v = buffers.room<float>(n);
        std::normal_distribution<float> normal;
        for (int step = 0; step < 2; ++step) {
            std::generate_n(k, n, [&] { return normal(random); });
            std::generate_n(v, n, [&] { return normal(random); });
            for (size_t j = 0; j < c.sequences.size(); ++j) {
                Sequence & s = c.sequences[j];
                s.n_tokens = *d.n_tokens[j] = 1 + int32_t(random() % s.capacity);
                for (int64_t x = 0; x < int64_t(n_kv) * dim; ++x) {
                    const int64_t at = (x / dim * s.capacity + s.n_tokens - 1) * dim + x % dim;
                    s.k[at] = ggml_fp32_to_fp16(k[j * n_kv * dim + x]);
                    s.v[at] = ggml_fp32_to_fp16(v[j * n_kv * dim + x]);
                }
            }
            const auto encoder = emulator::encoder();
            check_op(ggml_zipcache_metal_append_kv(&d.args, Buffers::address(k), Buffers::address(v), &encoder));
            Difference worst;
            attend(c, d, worst);
            CHECK(worst.output < kTolerance);  // the probes' slots are those of another length
        }
    }
}

TEST(metal_ops_name_what_they_do_not_accept) {
    const ggml_zipcache_metal_encoder none = {[](void *, const ggml_zipcache_metal_dispatch *) { CHECK(false); },
                                              nullptr};
    ggml_zipcache_metal_attend_args args = {};
    args.n_sequences = 1;
    args.n_heads = 8;
    args.n_kv_heads = 8;
    args.head_dim = 72;
    CHECK(ggml_zipcache_metal_attend_kv(&args, 0, &none) != nullptr);
    args.head_dim = 128;
    args.n_kv_heads = 0;
    CHECK(ggml_zipcache_metal_attend_kv(&args, 0, &none) != nullptr);
    CHECK(ggml_zipcache_metal_attend_kv_workspace(&args) == 0);
    args.n_kv_heads = 8;
    args.n_heads = 136;
    CHECK(ggml_zipcache_metal_append_kv(&args, 0, 0, &none) != nullptr);
    ggml_zipcache_metal_index_args index = {};
    CHECK(ggml_zipcache_metal_index_kv(&index, &none) != nullptr);
    ggml_zipcache_metal_probes probes = {};
    CHECK(ggml_zipcache_metal_score_probes(&probes, 0, &none) != nullptr);
    ggml_zipcache_metal_ranking ranking = {1, 4, 5, 0, 0};
    CHECK(ggml_zipcache_metal_top_ratio(&ranking, &none) != nullptr);
    std::mt19937 random(1);
    Sample s = random_sample(random, 128);
    ggml_zipcache_metal_rows rows = {};
    CHECK(ggml_zipcache_metal_quantize_kv(&s.format, &rows, 0, 64, 0, &none) != nullptr);
    CHECK(ggml_zipcache_metal_dequantize_kv(&s.format, &rows, 0, 0, &none) != nullptr);
    rows.n_tokens = 70000;
    CHECK(ggml_zipcache_metal_positions(&s.format, &rows, 0, 0, 0, &none) != nullptr);
    s.format.head_dim = 112;
    std::vector<uint8_t> to(ggml_zipcache_metal_format_bytes());
    CHECK(ggml_zipcache_metal_write_format(&s.format, to.data()) != nullptr);
}

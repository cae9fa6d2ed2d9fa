// Segments in the order of CUDA devices: what the host does with them, which needs no device.
#include "check.h"
#include "ggml-zipcache-cuda.h"
#include "segment_sample.h"

namespace {

const int kDims[] = {64, 80, 96, 128, 256};

std::vector<uint8_t> to_cuda(const Sample & s) {
    std::vector<uint8_t> bytes(ggml_zipcache_cuda_bytes_of_cpu(&s.format, s.segment.data()), 0xAA);
    ggml_zipcache_cuda_from_cpu(&s.format, s.segment.data(), bytes.data());
    return bytes;
}

}  // namespace

TEST(a_segment_survives_the_way_to_cuda_and_back) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(400); ++i) {
        const Sample s = random_sample(random, kDims[random() % 5]);
        const auto bytes = to_cuda(s);
        CHECK(ggml_zipcache_cuda_format_error(&s.format) == nullptr);
        CHECK(!ggml_zipcache_cuda_segment_error(&s.format, s.n_tokens, bytes.data(), bytes.size()));
        std::vector<uint8_t> back(ggml_zipcache_cpu_bytes_of_cuda(&s.format, bytes.data()), 0xAA);
        CHECK(back.size() == s.segment.size());
        ggml_zipcache_cpu_from_cuda(&s.format, bytes.data(), back.data());
        CHECK(back == s.segment);
        if (back != s.segment) {
            std::printf("  %s\n", described(s).c_str());
        }
    }
}

TEST(a_cuda_segment_stays_within_its_bound) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(400); ++i) {
        const Sample s = random_sample(random, kDims[random() % 5]);
        const auto & f = s.format;
        const size_t bytes = to_cuda(s).size();
        const double bits = 8.0 * double(s.segment.size()) / (2.0 * f.n_kv_heads * f.head_dim * double(s.n_tokens));
        CHECK(bytes <= ggml_zipcache_cuda_segment_bound(&f, s.n_tokens, 0));
        CHECK(bytes <= ggml_zipcache_cuda_segment_bound(&f, s.n_tokens, bits));
        std::vector<uint32_t> counts((f.same_order ? 1 : f.n_kv_heads) * f.n_tiers);
        for (int64_t t = 0; t < int64_t(s.tier.size()); ++t) {
            ++counts[t / s.n_tokens * f.n_tiers + s.tier[t]];
        }
        CHECK(bytes == ggml_zipcache_cuda_segment_bytes(&f, s.n_tokens, counts.data()));
    }
}

TEST(damage_to_a_cuda_segment_is_named) {
    std::mt19937 random(test_seed());
    for (int i = 0; i < n_cases(60); ++i) {
        const Sample s = random_sample(random, kDims[random() % 5]);
        const auto before = to_cuda(s);
        for (int j = 0; j < 20; ++j) {  // whatever passes must be safe to read
            auto bytes = before;
            for (int b = 0; b < 3; ++b) {
                bytes[random() % std::min<size_t>(bytes.size(), j % 2 ? 400 : bytes.size())] = uint8_t(random());
            }
            bytes.resize(j % 5 == 0 ? random() % bytes.size() : bytes.size());
            if (!ggml_zipcache_cuda_segment_error(&s.format, s.n_tokens, bytes.data(), bytes.size())) {
                std::vector<uint8_t> back(ggml_zipcache_cpu_bytes_of_cuda(&s.format, bytes.data()));
                ggml_zipcache_cpu_from_cuda(&s.format, bytes.data(), back.data());
            }
        }
    }
}

TEST(formats_that_cuda_kernels_do_not_read_are_named) {
    std::mt19937 random(1);
    ggml_zipcache_format f = random_sample(random, 128).format;
    f.head_dim = 112;
    CHECK(ggml_zipcache_cuda_format_error(&f) != nullptr);
    f.head_dim = 128;
    f.v.scope = GGML_ZIPCACHE_SCOPE_TOKEN;
    f.v.block = 16;
    CHECK(ggml_zipcache_cuda_format_error(&f) != nullptr);
}

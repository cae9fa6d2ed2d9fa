#include "buffers.h"
#include "check.h"
#include "probe_sample.h"

namespace {

double difference(const ProbeSample & s, int64_t n_probes) {
    Buffers buffers;
    auto *score = buffers.put(s.before), *square = buffers.put(s.before);
    const auto & p = s.probes;
    const ggml_zipcache_metal_probes there = {p.n_heads,
                                              p.n_kv_heads,
                                              p.head_dim,
                                              p.scale,
                                              p.sliding_window,
                                              int32_t(n_probes),
                                              p.n_tokens,
                                              p.k_stride,
                                              buffers.send(s.k),
                                              buffers.send(s.position),
                                              buffers.send(s.q),
                                              Buffers::address(score),
                                              Buffers::address(square)};
    auto * work = buffers.room<uint8_t>(ggml_zipcache_metal_score_probes_workspace(&there));
    const auto encoder = emulator::encoder();
    check_op(ggml_zipcache_metal_score_probes(&there, Buffers::address(work), &encoder));
    return s.difference(score, square);
}

constexpr double kTolerance = 4e-3;  // queries of 11 bits against logits of up to 10

}  // namespace

TEST(metal_score_probes_matches_the_reference) {
    std::mt19937 random(test_seed());
    double most = 0;
    for (int i = 0; i < n_cases(25); ++i) {
        const ProbeShape c = random_probe_shape(random);
        const double worst = difference(ProbeSample(c, random), c.n_probes);
        most = std::max(most, worst);
        CHECK(worst < kTolerance);
        if (!(worst < kTolerance)) {
            describe(c, worst);
        }
    }
    std::printf("  score_probes: off by at most %.2g\n", most);
}

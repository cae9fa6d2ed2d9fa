#include "arena.h"
#include "check.h"
#include "ggml-zipcache-cuda.h"
#include "probe_sample.h"

namespace {

double difference(const ProbeSample & s, int64_t n_probes) {
    Arena & arena = Arena::get();
    ggml_zipcache_probes there = s.probes;
    there.k = arena.put(s.k);
    there.position = arena.put(s.position);
    there.q = arena.put(s.q);
    const ggml_zipcache_cuda_scores scores = {n_probes, arena.put(s.before), arena.put(s.before)};
    const size_t work = ggml_zipcache_cuda_score_probes_workspace(&there, n_probes);
    auto * workspace = arena.room<uint8_t>(work);
    arena.upload();
    check_op(ggml_zipcache_cuda_score_probes(&there, &scores, workspace, work, nullptr));
    const auto score = arena.read(scores.score, s.before.size()), square = arena.read(scores.square, s.before.size());
    return s.difference(score.data(), square.data());
}

constexpr double kTolerance = 4e-3;  // queries of 11 bits against logits of up to 10

}  // namespace

TEST(cuda_score_probes_matches_the_reference) {
    std::mt19937 random(test_seed());
    double most = 0;
    for (int i = 0; i < n_cases(2000); ++i) {
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

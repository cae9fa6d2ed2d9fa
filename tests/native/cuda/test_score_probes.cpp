#include "arena.h"
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

}  // namespace

TEST(cuda_score_probes_matches_the_reference) {
    check_scores(n_cases(2000), difference);
}

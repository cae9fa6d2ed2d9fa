#include "buffers.h"
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

}  // namespace

TEST(metal_score_probes_matches_the_reference) {
    check_scores(n_cases(25), difference);
}

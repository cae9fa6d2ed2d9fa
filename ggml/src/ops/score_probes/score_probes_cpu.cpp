#include <vector>

#include "device/cpu_kernels.h"

namespace zipcache::score_probes {
namespace {

// Rows of logits that live at a time; more make the product of queries and keys cheaper.
constexpr int64_t kRows = 48;

}  // namespace
}  // namespace zipcache::score_probes

void ggml_zipcache_score_probes(const ggml_zipcache_probes * probes, int kv_head, int64_t first_probe,
                                int64_t last_probe, float * score, float * square) {
    using namespace zipcache::score_probes;
    const AddSoftmax add_softmax = zipcache::device::cpu_kernels().add_softmax;
    if (!add_softmax) {
        ggml_zipcache_score_probes_ref(probes, kv_head, first_probe, last_probe, score, square);
        return;
    }
    const auto & p = *probes;
    const int dim = p.head_dim, group = p.n_heads / p.n_kv_heads;
    const int64_t n_rows = (last_probe - first_probe) * group;
    std::vector<float> q(kRows * dim), logits(kRows * p.n_tokens);
    for (int64_t row = 0; row < n_rows; row += kRows) {
        const int64_t n = std::min(kRows, n_rows - row);
        auto probe_of = [&](int64_t i) { return first_probe + (row + i) / group; };
        int64_t last = 0;
        for (int64_t i = 0; i < n; ++i) {
            const float * from = p.q + (probe_of(i) * p.n_heads + kv_head * group + (row + i) % group) * dim;
            for (int c = 0; c < dim; ++c) {
                q[i * dim + c] = from[c] * p.scale;
            }
            last = std::max(last, seen_by(p, probe_of(i)).last);
        }
        ggml_zipcache_mul_mat_args args = {};
        args.type = GGML_TYPE_F16;
        args.weight = reinterpret_cast<const uint8_t *>(p.k + kv_head * p.k_stride * dim);
        args.weight_stride = dim * sizeof(uint16_t);
        args.k = dim;
        args.m = last;
        args.n = n;
        args.x = q.data();
        args.x_stride = dim;
        args.y = logits.data();
        args.y_stride = p.n_tokens;
        ggml_zipcache_mul_mat(&args, 0, last);
        for (int64_t i = 0; i < n; ++i) {
            const Seen seen = seen_by(p, probe_of(i));
            add_softmax(&logits[i * p.n_tokens + seen.first], seen.last - seen.first, score + seen.first,
                        square + seen.first);
        }
    }
}

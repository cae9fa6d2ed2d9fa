#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attend_segment.h"
#include "transform.h"

namespace zipcache::attend_segment {
namespace {

HeadKernel choose() {
    const auto level = ggml_zipcache_cpu_level();
    if (level >= GGML_ZIPCACHE_CPU_VNNI && head_vnni()) {
        return head_vnni();
    }
    return level >= GGML_ZIPCACHE_CPU_AVX2 ? head_avx2() : nullptr;
}

constexpr int kQueries = 4;  // query heads that pass over the codes together

// Undoes the values' transform and merges into partial [head_dim + 2].
void merge(float * out, float maximum, float sum, const ggml_zipcache_format & f, const float * v_divisor,
           float * partial) {
    const int dim = f.head_dim;
    const float top = std::max(maximum, partial[dim]);
    if (maximum == -std::numeric_limits<float>::infinity()) {
        return;
    }
    if (f.v.rotate) {
        walsh_hadamard(out, dim);
    }
    const float old_weight = std::exp(partial[dim] - top), new_weight = std::exp(maximum - top);
    for (int c = 0; c < dim; ++c) {
        const float value = v_divisor ? out[c] * v_divisor[c] : out[c];
        partial[c] = partial[c] * old_weight + value * new_weight;
    }
    partial[dim] = top;
    partial[dim + 1] = partial[dim + 1] * old_weight + sum * new_weight;
}

}  // namespace
}  // namespace zipcache::attend_segment

void ggml_zipcache_attend_segment(const ggml_zipcache_segment * segment, const ggml_zipcache_queries * queries,
                                  int64_t first_group, int64_t last_group, float * partial) {
    using namespace zipcache::attend_segment;
    const auto & f = *segment->format;
    const HeadKernel kernel = choose();
    if (!kernel || !vectorizes(f)) {
        ggml_zipcache_attend_segment_ref(segment, queries, first_group, last_group, partial);
        return;
    }
    const int dim = f.head_dim;
    const int group = queries->n_heads / f.n_kv_heads;
    std::vector<float> q(kQueries * dim), out(kQueries * dim);
    for (int head = 0; head < f.n_kv_heads; ++head) {
        const float * k_divisor = segment->k_divisor ? segment->k_divisor + int64_t(head) * dim : nullptr;
        const float * v_divisor = segment->v_divisor ? segment->v_divisor + int64_t(head) * dim : nullptr;
        for (int first = 0; first < group; first += kQueries) {
            const int n = std::min(kQueries, group - first);
            const int query = head * group + first;
            for (int i = 0; i < n; ++i) {
                for (int c = 0; c < dim; ++c) {
                    q[i * dim + c] =
                        queries->q[int64_t(query + i) * dim + c] * queries->scale * (k_divisor ? k_divisor[c] : 1.0f);
                }
                if (f.k.rotate) {
                    zipcache::walsh_hadamard(&q[i * dim], dim);
                }
            }
            float maximum[kQueries], sum[kQueries];
            kernel({f, segment->data, head, q.data(), n, first_group, last_group, out.data(), maximum, sum});
            for (int i = 0; i < n; ++i) {
                merge(&out[i * dim], maximum[i], sum[i], f, v_divisor, partial + int64_t(query + i) * (dim + 2));
            }
        }
    }
}

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "attend_kv.h"

namespace zipcache::attend_kv {

void head_portable(const HeadTask & task) {
    const int dim = task.head_dim;
    std::vector<float> row(dim);
    for (int i = 0; i < task.n_queries; ++i) {
        const float * q = task.q + i * dim;
        float * out = task.partial + i * (dim + 2);
        std::fill_n(out, dim, 0.0f);
        float maximum = -std::numeric_limits<float>::infinity();
        float sum = 0;
        for (int64_t t = 0; t < task.n_tokens; ++t) {
            ggml_fp16_to_fp32_row(task.k + t * dim, row.data(), dim);
            float logit = 0;
            for (int c = 0; c < dim; ++c) {
                logit += q[c] * row[c];
            }
            if (logit > maximum) {
                const float shrink = std::exp(maximum - logit);
                for (int c = 0; c < dim; ++c) {
                    out[c] *= shrink;
                }
                sum *= shrink;
                maximum = logit;
            }
            const float weight = std::exp(logit - maximum);
            sum += weight;
            ggml_fp16_to_fp32_row(task.v + t * dim, row.data(), dim);
            for (int c = 0; c < dim; ++c) {
                out[c] += weight * row[c];
            }
        }
        out[dim] = maximum;
        out[dim + 1] = sum;
    }
}

namespace {

HeadKernel choose(int head_dim) {
    // the vector kernels keep whole registers of channels
    if (head_dim % 16 != 0) {
        return head_portable;
    }
    const auto level = ggml_zipcache_cpu_level();
    if (level >= GGML_ZIPCACHE_CPU_AVX512 && head_avx512()) {
        return head_avx512();
    }
    if (level >= GGML_ZIPCACHE_CPU_AVX2 && head_avx2()) {
        return head_avx2();
    }
    return head_portable;
}

}  // namespace
}  // namespace zipcache::attend_kv

void ggml_zipcache_attend_kv(const ggml_zipcache_layer * layer, const float * q, int64_t n_tokens, int split,
                             int n_splits, float * partial) {
    using namespace zipcache::attend_kv;
    const int dim = layer->head_dim;
    const int group = layer->n_heads / layer->n_kv_heads;
    const auto range = split_range(visible_tokens(*layer, n_tokens), split, n_splits);
    const HeadKernel kernel = choose(dim);
    std::vector<float> scaled(size_t(group) * dim);
    partial += int64_t(split) * layer->n_heads * (dim + 2);
    for (int head = 0; head < layer->n_kv_heads; ++head) {
        for (size_t i = 0; i < scaled.size(); ++i) {
            scaled[i] = q[head * scaled.size() + i] * layer->scale;
        }
        const int64_t base = (head * layer->capacity + range.first) * dim;
        kernel({scaled.data(), group, dim, layer->k + base, layer->v + base, range.last - range.first,
                partial + int64_t(head) * group * (dim + 2)});
    }
}

void ggml_zipcache_attend_kv_merge(const ggml_zipcache_layer * layer, const float * partial, int n_splits,
                                   float * out) {
    const int dim = layer->head_dim;
    const int64_t stride = int64_t(layer->n_heads) * (dim + 2);
    for (int head = 0; head < layer->n_heads; ++head, partial += dim + 2, out += dim) {
        float maximum = -std::numeric_limits<float>::infinity();
        for (int s = 0; s < n_splits; ++s) {
            maximum = std::max(maximum, partial[s * stride + dim]);
        }
        float sum = 0;
        std::fill_n(out, dim, 0.0f);
        for (int s = 0; s < n_splits; ++s) {
            const float * part = partial + s * stride;
            const float weight = std::exp(part[dim] - maximum);
            sum += weight * part[dim + 1];
            for (int c = 0; c < dim; ++c) {
                out[c] += weight * part[c];
            }
        }
        for (int c = 0; c < dim; ++c) {
            out[c] /= sum;
        }
    }
}

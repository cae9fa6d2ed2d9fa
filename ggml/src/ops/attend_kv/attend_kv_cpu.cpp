#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "attend_kv.h"
#include "device/cpu_kernels.h"
#include "transform.h"

namespace zipcache::attend_kv {

void window_portable(const WindowTask & task) {
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

WindowKernel choose_window(int head_dim) {
    const WindowKernel kernel = device::cpu_kernels().window;
    // the vector kernels keep whole registers of channels
    return kernel && head_dim % 16 == 0 ? kernel : window_portable;
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

// Segments [first, first + n) that share their format and divisors: one KV head's queries over this split's blocks.
void add_run(PackedKernel kernel, const ggml_zipcache_layer & layer, const ggml_zipcache_segment * run, int64_t n,
             const float * q, int head, int split, int n_splits, int turn, float * partial) {
    const ggml_zipcache_format & f = *run->format;
    const int dim = f.head_dim, group = layer.n_heads / layer.n_kv_heads;
    const float * k_divisor = run->k_divisor ? run->k_divisor + int64_t(head) * dim : nullptr;
    const float * v_divisor = run->v_divisor ? run->v_divisor + int64_t(head) * dim : nullptr;
    std::vector<float> stored(size_t(kQueries) * dim), out(size_t(kQueries) * dim);
    for (int first = 0; first < group; first += kQueries) {
        const int n_queries = std::min(kQueries, group - first);
        const int query = head * group + first;
        for (int i = 0; i < n_queries; ++i) {
            float * x = &stored[size_t(i) * dim];
            for (int c = 0; c < dim; ++c) {
                x[c] = q[int64_t(query + i) * dim + c] * layer.scale * (k_divisor ? k_divisor[c] : 1.0f);
            }
            if (f.k.rotate) {
                walsh_hadamard(x, dim);
            }
        }
        float maximum[kQueries], sum[kQueries];
        kernel({run, n, head, stored.data(), n_queries, split, n_splits, turn, out.data(), maximum, sum});
        for (int i = 0; i < n_queries; ++i) {
            merge(&out[size_t(i) * dim], maximum[i], sum[i], f, v_divisor, partial + int64_t(query + i) * (dim + 2));
        }
    }
}

void add_segments(const ggml_zipcache_layer & layer, const float * q, int split, int n_splits, float * partial) {
    const PackedKernel kernel = device::cpu_kernels().packed;
    for (int64_t first = 0, last; first < layer.n_segments; first = last) {
        const ggml_zipcache_segment * run = layer.segments + first;
        last = first + 1;
        if (!kernel || !vectorizes(*run->format)) {
            if (first % n_splits == split) {
                add_segment_ref(layer, *run, q, partial);
            }
            continue;
        }
        while (last < layer.n_segments && layer.segments[last].format == run->format &&
               layer.segments[last].k_divisor == run->k_divisor && layer.segments[last].v_divisor == run->v_divisor) {
            ++last;
        }
        for (int head = 0; head < layer.n_kv_heads; ++head) {
            // what is left over falls to another split in each head
            add_run(kernel, layer, run, last - first, q, head, split, n_splits, int(first + head), partial);
        }
    }
}

}  // namespace
}  // namespace zipcache::attend_kv

void ggml_zipcache_attend_kv(const ggml_zipcache_layer * layer, const float * q, int64_t n_tokens, int split,
                             int n_splits, float * partial) {
    using namespace zipcache::attend_kv;
    const int dim = layer->head_dim;
    const int group = layer->n_heads / layer->n_kv_heads;
    const auto range = split_range(visible_tokens(*layer, n_tokens), split, n_splits);
    const WindowKernel kernel = choose_window(dim);
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
    add_segments(*layer, q, split, n_splits, partial);
}

void ggml_zipcache_attend_kv_merge(const ggml_zipcache_layer * layer, const float * partial, int n_splits, float * out,
                                   float * log_sum) {
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
        if (log_sum) {
            log_sum[head] = maximum + std::log(sum);
        }
    }
}

// The ops as ggml graph nodes. ggml gives a custom node neither scratch nor a barrier, so the three phases of a step of
// attention are three nodes.
#include <algorithm>

#include "ggml-zipcache.h"

namespace {

// userdata of all three: the layer of each sequence, [n_sequences].
const ggml_zipcache_layer & layer_of(const void * userdata, int64_t sequence) {
    return *static_cast<const ggml_zipcache_layer * const *>(userdata)[sequence];
}

// The rows of one KV head of a token, f32 to the f16 of its window.
void store(const ggml_zipcache_layer & layer, const uint16_t * window, const ggml_tensor * rows, int64_t head,
           int64_t sequence, int64_t row) {
    const auto * from = static_cast<const char *>(rows->data) + head * rows->nb[1] + sequence * rows->nb[2];
    uint16_t * to = const_cast<uint16_t *>(window) + (head * layer.capacity + row) * layer.head_dim;
    ggml_fp32_to_fp16_row(reinterpret_cast<const float *>(from), to, layer.head_dim);
}

void append(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor *k = dst->src[0], *v = dst->src[1];
    const auto * n_tokens = static_cast<const int32_t *>(dst->src[2]->data);
    const int64_t n_kv_heads = k->ne[1];
    for (int64_t i = ith; i < n_kv_heads * k->ne[2]; i += nth) {
        const int64_t head = i % n_kv_heads, sequence = i / n_kv_heads;
        const ggml_zipcache_layer & layer = layer_of(userdata, sequence);
        store(layer, layer.k, k, head, sequence, n_tokens[sequence] - 1);
        store(layer, layer.v, v, head, sequence, n_tokens[sequence] - 1);
    }
}

const float * column(const ggml_tensor * columns, int64_t sequence, size_t stride) {
    return reinterpret_cast<const float *>(static_cast<const char *>(columns->data) + sequence * stride);
}

// dst [head_dim + 2, n_heads, n_splits, n_sequences]
void attend(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor * q = dst->src[0];
    const auto * n_tokens = static_cast<const int32_t *>(dst->src[1]->data);
    const int n_splits = static_cast<int>(dst->ne[2]);
    for (int64_t s = 0; s < dst->ne[3]; ++s) {
        auto * partial = reinterpret_cast<float *>(static_cast<char *>(dst->data) + s * dst->nb[3]);
        for (int split = ith; split < n_splits; split += nth) {
            ggml_zipcache_attend_kv(&layer_of(userdata, s), column(q, s, q->nb[2]), n_tokens[s], split, n_splits,
                                    partial);
        }
    }
}

// dst [head_dim * n_heads, n_sequences]
void merge(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor *partial = dst->src[0], *q = dst->src[1];
    for (int64_t s = ith; s < dst->ne[1]; s += nth) {
        const ggml_zipcache_layer & layer = layer_of(userdata, s);
        ggml_zipcache_attend_kv_merge(&layer, column(partial, s, partial->nb[3]), static_cast<int>(partial->ne[2]),
                                      reinterpret_cast<float *>(static_cast<char *>(dst->data) + s * dst->nb[1]),
                                      layer.probe_log_sum);
        if (layer.probe_q) {
            ggml_fp32_to_fp16_row(column(q, s, q->nb[2]), layer.probe_q, int64_t(layer.n_heads) * layer.head_dim);
        }
    }
}

void mul_mat(ggml_tensor * dst, int ith, int nth, void *) {
    const ggml_tensor * weight = dst->src[0];
    const ggml_tensor * x = dst->src[1];
    ggml_zipcache_mul_mat_args args = {};
    args.type = weight->type;
    args.weight = static_cast<const uint8_t *>(weight->data);
    args.weight_stride = weight->nb[1];
    args.k = weight->ne[0];
    args.m = weight->ne[1];
    args.n = x->ne[1];
    args.x = static_cast<const float *>(x->data);
    args.x_stride = int64_t(x->nb[1] / sizeof(float));
    args.y = static_cast<float *>(dst->data);
    args.y_stride = int64_t(dst->nb[1] / sizeof(float));
    constexpr int64_t kStep = 32;  // rows; whole panels for each thread
    const int64_t n_steps = (args.m + kStep - 1) / kStep;
    const int64_t first = n_steps * ith / nth * kStep;
    const int64_t last = std::min(args.m, n_steps * (ith + 1) / nth * kStep);
    ggml_zipcache_mul_mat(&args, first, last);
}

}  // namespace

ggml_tensor * ggml_zipcache_attend_kv_node(ggml_context * ctx, const ggml_zipcache_layer * const * layers,
                                           const ggml_zipcache_new_tokens * tokens, int n_splits) {
    void * userdata = const_cast<void *>(static_cast<const void *>(layers));
    const int64_t n_sequences = tokens->q->ne[2];
    ggml_tensor * rows[] = {tokens->k, tokens->v, tokens->n_tokens};
    ggml_tensor * appended =
        ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, rows, 3, append, GGML_N_TASKS_MAX, userdata);
    ggml_tensor * inputs[] = {tokens->q, tokens->n_tokens, appended};
    ggml_tensor * partial = ggml_custom_4d(ctx, GGML_TYPE_F32, tokens->q->ne[0] + 2, tokens->q->ne[1], n_splits,
                                           n_sequences, inputs, 3, attend, n_splits, userdata);
    ggml_tensor * parts[] = {partial, tokens->q};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, tokens->q->ne[0] * tokens->q->ne[1], n_sequences, 1, 1, parts, 2, merge,
                          n_splits, userdata);
}

ggml_tensor * ggml_zipcache_mul_mat_node(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) {
    ggml_tensor * inputs[] = {weight, x};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, weight->ne[1], x->ne[1], 1, 1, inputs, 2, mul_mat, GGML_N_TASKS_MAX,
                          nullptr);
}

// The ops as ggml graph nodes. ggml gives a custom node neither scratch nor a barrier, so the two phases of attend_kv
// are two nodes.
#include <algorithm>

#include "ggml-zipcache.h"

namespace {

void attend(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto * layer = static_cast<const ggml_zipcache_layer *>(userdata);
    const int64_t n_tokens = *static_cast<const int32_t *>(dst->src[3]->data);
    const int n_splits = static_cast<int>(dst->ne[2]);
    for (int split = ith; split < n_splits; split += nth) {
        ggml_zipcache_attend_kv(layer, static_cast<const float *>(dst->src[0]->data), n_tokens, split, n_splits,
                                static_cast<float *>(dst->data));
    }
}

void merge(ggml_tensor * dst, int ith, int, void * userdata) {
    const auto * layer = static_cast<const ggml_zipcache_layer *>(userdata);
    if (ith == 0) {
        ggml_zipcache_attend_kv_merge(layer, static_cast<const float *>(dst->src[0]->data),
                                      static_cast<int>(dst->src[0]->ne[2]), static_cast<float *>(dst->data),
                                      layer->probe_log_sum);
        if (layer->probe_q) {
            ggml_fp32_to_fp16_row(static_cast<const float *>(dst->src[1]->data), layer->probe_q,
                                  int64_t(layer->n_heads) * layer->head_dim);
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

ggml_tensor * ggml_zipcache_attend_kv_node(ggml_context * ctx, const ggml_zipcache_layer * layer, ggml_tensor * q,
                                           ggml_tensor * k, ggml_tensor * v, ggml_tensor * n_tokens, int n_splits) {
    void * userdata = const_cast<ggml_zipcache_layer *>(layer);
    ggml_tensor * inputs[] = {q, k, v, n_tokens};
    ggml_tensor * partial = ggml_custom_4d(ctx, GGML_TYPE_F32, layer->head_dim + 2, layer->n_heads, n_splits, 1, inputs,
                                           4, attend, n_splits, userdata);
    ggml_tensor * parts[] = {partial, q};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, int64_t(layer->head_dim) * layer->n_heads, 1, 1, 1, parts, 2, merge, 1,
                          userdata);
}

ggml_tensor * ggml_zipcache_mul_mat_node(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) {
    ggml_tensor * inputs[] = {weight, x};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, weight->ne[1], x->ne[1], 1, 1, inputs, 2, mul_mat, GGML_N_TASKS_MAX,
                          nullptr);
}

// attend_kv as ggml graph nodes. ggml gives a custom node neither scratch nor a barrier, so the two phases are two
// nodes.
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
    if (ith == 0) {
        ggml_zipcache_attend_kv_merge(static_cast<const ggml_zipcache_layer *>(userdata),
                                      static_cast<const float *>(dst->src[0]->data),
                                      static_cast<int>(dst->src[0]->ne[2]), static_cast<float *>(dst->data));
    }
}

}  // namespace

ggml_tensor * ggml_zipcache_attend_kv_node(ggml_context * ctx, const ggml_zipcache_layer * layer, ggml_tensor * q,
                                           ggml_tensor * k, ggml_tensor * v, ggml_tensor * n_tokens, int n_splits) {
    void * userdata = const_cast<ggml_zipcache_layer *>(layer);
    ggml_tensor * inputs[] = {q, k, v, n_tokens};
    ggml_tensor * partial = ggml_custom_4d(ctx, GGML_TYPE_F32, layer->head_dim + 2, layer->n_heads, n_splits, 1, inputs,
                                           4, attend, n_splits, userdata);
    return ggml_custom_4d(ctx, GGML_TYPE_F32, int64_t(layer->head_dim) * layer->n_heads, 1, 1, 1, &partial, 1, merge, 1,
                          userdata);
}

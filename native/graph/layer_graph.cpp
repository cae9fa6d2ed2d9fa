#include "graph/layer_graph.h"

#include "ggml-backend.h"
#include "ggml-zipcache.h"

namespace zipcache {
namespace {

ggml_tensor * product(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) {
    // ggml's repacked layouts are no host buffers: only ggml reads them, and its products with them are fast
    const bool as_in_file = weight->buffer && ggml_backend_buffer_is_host(weight->buffer);
    return as_in_file && ggml_zipcache_mul_mat_supported(weight->type, weight->ne[0], x->ne[1])
               ? ggml_zipcache_mul_mat_node(ctx, weight, x)
               : ggml_mul_mat(ctx, weight, x);
}

}  // namespace

ggml_tensor * LayerGraph::norm(ggml_tensor * x, ggml_tensor * weight) const {
    return ggml_mul(ctx, ggml_rms_norm(ctx, x, h.norm_epsilon), weight);
}

ggml_tensor * LayerGraph::linear(ggml_tensor * x, ggml_tensor * weight, ggml_tensor * bias) const {
    ggml_tensor * y = product(ctx, weight, x);
    return bias ? ggml_add(ctx, y, bias) : y;
}

Heads LayerGraph::project_heads(ggml_tensor * x) const {
    const int64_t n = x->ne[1];
    return {ggml_reshape_3d(ctx, linear(x, w.q, w.q_bias), h.head_dim, h.n_heads, n),
            ggml_reshape_3d(ctx, linear(x, w.k, w.k_bias), h.head_dim, h.n_kv_heads, n),
            ggml_reshape_3d(ctx, linear(x, w.v, w.v_bias), h.head_dim, h.n_kv_heads, n)};
}

Heads LayerGraph::split_heads(ggml_tensor * qkv) const {
    const size_t head = h.head_dim * sizeof(float);
    auto part = [&](int first, int count) {
        return ggml_view_3d(ctx, qkv, h.head_dim, count, qkv->ne[1], head, qkv->nb[1], first * head);
    };
    return {part(0, h.n_heads), part(h.n_heads, h.n_kv_heads), part(h.n_heads + h.n_kv_heads, h.n_kv_heads)};
}

ggml_tensor * LayerGraph::rope(ggml_tensor * x) const {
    const RopeParams & p = h.rope_of(layer);
    const int mode = p.pairs == RopePairs::halves ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
    return ggml_rope_ext(ctx, x, positions, rope_factors, p.n_dims, mode, p.n_ctx_original, p.base, p.frequency_scale,
                         p.yarn_mix, p.attention_factor, p.beta_fast, p.beta_slow);
}

ggml_tensor * LayerGraph::attend(Heads heads) const {
    ggml_tensor * q = rope(heads.q);
    ggml_tensor * k = rope(heads.k);
    return linear(attention.attend(ctx, graph, layer, q, k, heads.v), w.attention_output, w.attention_output_bias);
}

ggml_tensor * LayerGraph::residual(ggml_tensor * x, ggml_tensor * branch) const {
    if (x->ne[1] != branch->ne[1]) {
        x = ggml_view_2d(ctx, x, x->ne[0], 1, x->nb[1], (x->ne[1] - 1) * x->nb[1]);
    }
    return ggml_add(ctx, x, branch);
}

ggml_tensor * LayerGraph::gated_ffn(ggml_tensor * x, Activation activation) const {
    ggml_tensor * up = linear(x, w.ffn_up);
    ggml_tensor * gated;
    if (w.ffn_gate) {
        ggml_tensor * gate = linear(x, w.ffn_gate);
        gated = activation == Activation::silu ? ggml_swiglu_split(ctx, gate, up) : ggml_geglu_split(ctx, gate, up);
    } else {
        gated = activation == Activation::silu ? ggml_swiglu(ctx, up) : ggml_geglu(ctx, up);
    }
    return linear(gated, w.ffn_down);
}

}  // namespace zipcache

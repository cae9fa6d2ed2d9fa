#include "graph/layer_graph.h"

#include <algorithm>

#include "ggml-backend.h"
#include "ggml-zipcache.h"

namespace zipcache {
namespace {

ggml_tensor * product(const Device & device, ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) {
    if (ggml_tensor * y = device.wide_product(ctx, weight, x)) {
        return y;
    }
    // ggml's repacked layouts are no host buffers: only ggml reads them, and its products with them are fast
    const bool as_in_file = weight->buffer && ggml_backend_buffer_is_host(weight->buffer);
    return as_in_file && ggml_zipcache_mul_mat_supported(weight->type, weight->ne[0], x->ne[1])
               ? ggml_zipcache_mul_mat_node(ctx, weight, x)
               : ggml_mul_mat(ctx, weight, x);
}

// dst [n_embd, n_tokens] = sum over the experts used of src[0] [n_embd, n_used, n_tokens] * src[1] [n_used, n_tokens].
// Columns are split over the threads, so that a single token is too.
void mix_experts(ggml_tensor * dst, int ith, int nth, void *) {
    const ggml_tensor * outputs = dst->src[0];
    const auto * y = static_cast<const float *>(outputs->data);
    const auto * weight = static_cast<const float *>(dst->src[1]->data);
    auto * out = static_cast<float *>(dst->data);
    const int64_t n_embd = outputs->ne[0], n_used = outputs->ne[1], n_tokens = outputs->ne[2];
    const int64_t first = n_embd * ith / nth, end = n_embd * (ith + 1) / nth;
    for (int64_t t = 0; t < n_tokens; ++t, out += n_embd) {
        std::fill(out + first, out + end, 0.0f);
        for (int64_t k = 0; k < n_used; ++k, y += n_embd, ++weight) {
            for (int64_t c = first; c < end; ++c) {
                out[c] += *weight * y[c];
            }
        }
    }
}

}  // namespace

ggml_tensor * LayerGraph::norm(ggml_tensor * x, ggml_tensor * weight) const {
    return ggml_mul(ctx, ggml_rms_norm(ctx, x, h.norm_epsilon), weight);
}

ggml_tensor * LayerGraph::linear(ggml_tensor * x, ggml_tensor * weight, ggml_tensor * bias) const {
    ggml_tensor * y = product(device, ctx, weight, x);
    return bias ? ggml_add(ctx, y, bias) : y;
}

Heads LayerGraph::project_heads(ggml_tensor * x) const {
    const int64_t n = x->ne[1];
    if (w.qkv) {
        auto with_bias = [&](ggml_tensor * heads, ggml_tensor * bias) {
            return bias ? ggml_add(ctx, heads, ggml_reshape_2d(ctx, bias, heads->ne[0], heads->ne[1])) : heads;
        };
        const Heads heads = split_heads(linear(x, w.qkv));
        return {with_bias(heads.q, w.q_bias), with_bias(heads.k, w.k_bias), with_bias(heads.v, w.v_bias)};
    }
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

Heads LayerGraph::turned(const Heads & heads) const {
    if (const ggml_tensor * both = heads.q->view_src;
        both && both == heads.k->view_src && heads.q->ne[2] == 1 &&
        heads.k->view_offs == heads.q->view_offs + h.n_heads * heads.q->nb[1]) {
        // one behind the other: they turn as one
        ggml_tensor * rows = rope(ggml_view_3d(ctx, heads.q->view_src, h.head_dim, h.n_heads + h.n_kv_heads, 1,
                                               heads.q->nb[1], heads.q->nb[2], heads.q->view_offs));
        return {ggml_view_3d(ctx, rows, h.head_dim, h.n_heads, 1, rows->nb[1], rows->nb[2], 0),
                ggml_view_3d(ctx, rows, h.head_dim, h.n_kv_heads, 1, rows->nb[1], rows->nb[2], h.n_heads * rows->nb[1]),
                heads.v};
    }
    return {rope(heads.q), rope(heads.k), heads.v};
}

ggml_tensor * LayerGraph::attend(Heads heads) const {
    const RopeParams & p = h.rope_of(layer);
    ggml_tensor * out;
    if (attention.turns(layer) && p.yarn_mix == 0) {
        const Rope how = {positions, rope_factors,      p.n_dims,          p.pairs == RopePairs::halves,
                          p.base,    p.frequency_scale, p.attention_factor};
        out = attention.attend(ctx, graph, layer, heads, &how);
    } else {
        out = attention.attend(ctx, graph, layer, turned(heads), nullptr);
    }
    return linear(out, w.attention_output, w.attention_output_bias);
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

ggml_tensor * LayerGraph::expert_weights(ggml_tensor * probs, ggml_tensor * chosen) const {
    const int64_t n_tokens = probs->ne[1];
    ggml_tensor * weights = ggml_get_rows(ctx, ggml_reshape_3d(ctx, probs, 1, h.n_experts, n_tokens), chosen);
    weights = ggml_reshape_2d(ctx, weights, h.n_experts_used, n_tokens);
    return h.normalize_experts ? ggml_div(ctx, weights, ggml_sum_rows(ctx, weights)) : weights;
}

ggml_tensor * LayerGraph::moe_ffn(ggml_tensor * x) const {
    const int64_t n_tokens = x->ne[1];
    ggml_tensor * probs = ggml_soft_max(ctx, linear(x, w.ffn_router));    // [n_experts, n_tokens]
    ggml_tensor * chosen = ggml_top_k(ctx, probs, h.n_experts_used);      // [n_experts_used, n_tokens] i32
    ggml_tensor * each = ggml_reshape_3d(ctx, x, h.n_embd, 1, n_tokens);  // the same for all experts of a token
    ggml_tensor * up = ggml_mul_mat_id(ctx, w.experts_up, each, chosen);  // [n_ff, n_experts_used, n_tokens]
    ggml_tensor * gate = ggml_mul_mat_id(ctx, w.experts_gate, each, chosen);
    ggml_tensor * outputs = ggml_mul_mat_id(ctx, w.experts_down, ggml_swiglu_split(ctx, gate, up), chosen);
    ggml_tensor * args[] = {outputs, expert_weights(probs, chosen)};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, h.n_embd, n_tokens, 1, 1, args, 2, mix_experts, GGML_N_TASKS_MAX,
                          nullptr);
}

}  // namespace zipcache

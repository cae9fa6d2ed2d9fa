#include "graph/computable.h"

#include "graph/architecture.h"

namespace zipcache {
namespace {

constexpr int kTokens = 2, kRows = 256, kMaxNodes = 256;

// Flash attention over rows that have no data: its nodes can be asked about, not run.
class DryAttention : public Attention {
  public:
    explicit DryAttention(const HParams & h) : h_(h) {}

    ggml_tensor * attend(ggml_context * ctx, ggml_cgraph *, int, const Heads & heads, const Rope *) override {
        ggml_tensor * k = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, h_.head_dim, kRows, h_.n_kv_heads);
        ggml_tensor * v = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, h_.head_dim, kRows, h_.n_kv_heads);
        ggml_tensor * mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, kRows, kTokens);
        ggml_tensor * out = ggml_flash_attn_ext(ctx, ggml_permute(ctx, heads.q, 0, 2, 1, 3), k, v, mask,
                                                h_.attention_scale, 0.0f, 0.0f);
        return ggml_reshape_2d(ctx, out, out->ne[0] * out->ne[1], out->ne[2]);
    }

  private:
    const HParams & h_;
};

std::string name_of(const ggml_tensor * node) {
    const ggml_tensor * source = node->src[0] ? node->src[0] : node;
    return std::string(ggml_op_desc(node)) + " of " + ggml_type_name(source->type) + " with rows of " +
           std::to_string(source->ne[0]);
}

}  // namespace

std::string not_computed(const Network & network, const Device & device, int first) {
    const HParams & h = network.h;
    if (!device.attends(h.n_heads / h.n_kv_heads, h.head_dim)) {
        return "attention with " + std::to_string(h.n_heads / h.n_kv_heads) + " query heads to a KV head of " +
               std::to_string(h.head_dim) + " channels";
    }
    for (int i = first > 0 ? first : -1; i <= h.n_layers; ++i) {  // the layers between the embedding and the output
        const GgmlContext context(ggml_init(
            {2 * kMaxNodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(kMaxNodes, false), nullptr, true}));
        ggml_context * ctx = context.get();
        ggml_cgraph * graph = ggml_new_graph_custom(ctx, kMaxNodes, false);
        ggml_tensor * ids = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, kTokens);
        ggml_tensor * x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, h.n_embd, kTokens);
        DryAttention attention(h);
        ggml_tensor * y = i < 0 ? ggml_get_rows(ctx, network.token_embedding, ids)
                          : i == h.n_layers
                              ? ggml_mul_mat(ctx, network.output, x)
                              : network.architecture->layer({device, ctx, graph, h, network.layers[i], i, ids,
                                                             network.layers[i].rope_factors, attention, false},
                                                            x);
        ggml_build_forward_expand(graph, y);
        for (int n = 0; n < ggml_graph_n_nodes(graph); ++n) {
            if (!device.computes(ggml_graph_node(graph, n))) {
                return name_of(ggml_graph_node(graph, n));
            }
        }
    }
    return {};
}

}  // namespace zipcache

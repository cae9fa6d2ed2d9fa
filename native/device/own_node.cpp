#include "device/own_node.h"

#include <utility>

namespace zipcache {
namespace {

void never(ggml_tensor *, int, int, void *) {}  // the CPU's function; these nodes do not run there

ggml_tensor * marked(ggml_tensor * node, const OwnNode & work) {
    node->extra = const_cast<OwnNode *>(&work);
    return node;
}

}  // namespace

ggml_tensor * own_node(ggml_context * ctx, const OwnNode & work, const std::array<int64_t, 2> & shape,
                       std::vector<ggml_tensor *> inputs, ggml_type type) {
    return marked(ggml_custom_4d(ctx, type, shape[0], shape[1], 1, 1, inputs.data(), static_cast<int>(inputs.size()),
                                 never, 1, nullptr),
                  work);
}

ggml_tensor * own_attention(ggml_context * ctx, const OwnNode & work, int64_t width,
                            const ggml_zipcache_new_tokens & tokens, const Rope * rope) {
    // columns of a fused product lie apart from each other
    auto packed = [&](ggml_tensor * rows) {
        const bool fits = rope ? ggml_is_contiguous_to_2(rows) : ggml_is_contiguous(rows);
        return fits ? rows : ggml_cont(ctx, rows);
    };
    std::vector<ggml_tensor *> inputs = {packed(tokens.q), packed(tokens.k), packed(tokens.v), tokens.n_tokens};
    if (rope) {
        inputs.push_back(rope->positions);
        if (rope->factors) {
            inputs.push_back(rope->factors);
        }
    }
    return own_node(ctx, work, {width, tokens.n_tokens->ne[0]}, std::move(inputs));
}

ggml_tensor * own_node_inplace(ggml_context * ctx, const OwnNode & work, ggml_tensor * to, ggml_tensor * input) {
    return marked(ggml_custom_inplace(ctx, to, &input, 1, never, 1, nullptr), work);
}

bool is_own(const ggml_tensor * node) {
    return node->op == GGML_OP_CUSTOM && node->extra;
}

void enqueue_nodes(ggml_cgraph * graph, void * queue, const std::function<void(int, int)> & stock) {
    const int n = ggml_graph_n_nodes(graph);
    for (int first = 0, last; first < n; first = last) {
        const ggml_tensor * node = ggml_graph_node(graph, first);
        last = first + 1;
        if (is_own(node)) {
            static_cast<const OwnNode *>(node->extra)->enqueue(node, queue);
            continue;
        }
        while (last < n && !is_own(ggml_graph_node(graph, last))) {
            ++last;
        }
        stock(first, last);
    }
}

}  // namespace zipcache

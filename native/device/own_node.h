#pragma once
#include <array>
#include <functional>
#include <vector>

#include "device/device.h"
#include "ggml-zipcache.h"

namespace zipcache {

// What a node of our own does, in a graph for a GPU: ggml's backend never sees it.
class OwnNode {
  public:
    // Enqueues; waits for nothing. queue: the device's, a cudaStream_t or a ggml_zipcache_metal_encoder *
    virtual void enqueue(const ggml_tensor * node, void * queue) const = 0;

  protected:
    ~OwnNode() = default;
};

// The node [shape] that it is the work of; its data are placed by the graph's allocator.
ggml_tensor * own_node(ggml_context * ctx, const OwnNode & work, const std::array<int64_t, 2> & shape,
                       std::vector<ggml_tensor *> inputs, ggml_type type = GGML_TYPE_F32);
// That of attention: [width, n_sequences]. Its inputs: queries, keys and values, n_tokens, and what a rope reads. With
// one, the tokens' heads may lie apart.
ggml_tensor * own_attention(ggml_context * ctx, const OwnNode & work, int64_t width,
                            const ggml_zipcache_new_tokens & tokens, const Rope * rope);
// The same where it changes `to`.
ggml_tensor * own_node_inplace(ggml_context * ctx, const OwnNode & work, ggml_tensor * to, ggml_tensor * input);
bool is_own(const ggml_tensor * node);

// Goes through a graph in its order: our own nodes are enqueued, the stretches [first, last) between them are handed to
// ggml's backend by `stock`.
void enqueue_nodes(ggml_cgraph * graph, void * queue, const std::function<void(int first, int last)> & stock);

}  // namespace zipcache

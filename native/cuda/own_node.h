#pragma once
#include <cuda_runtime_api.h>

#include <array>
#include <vector>

#include "ggml.h"

namespace zipcache::cuda {

// What a node of our own does: the userdata of a ggml_custom node in a graph for CUDA.
class OwnNode {
  public:
    // Enqueues; allocates nothing and waits for nothing.
    virtual void enqueue(const ggml_tensor * node, cudaStream_t stream) const = 0;

  protected:
    ~OwnNode() = default;
};

// The node [shape] f32 that it is the work of; its data are placed by the graph's allocator.
ggml_tensor * own_node(ggml_context * ctx, const OwnNode & work, const std::array<int64_t, 2> & shape,
                       std::vector<ggml_tensor *> inputs);
// The same where it changes `to`.
ggml_tensor * own_node_inplace(ggml_context * ctx, const OwnNode & work, ggml_tensor * to, ggml_tensor * input);
bool is_own(const ggml_tensor * node);
const OwnNode & work_of(const ggml_tensor * node);

}  // namespace zipcache::cuda

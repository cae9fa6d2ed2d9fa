#include "cuda/own_node.h"

#include <cstring>

#include "ggml-impl.h"

namespace zipcache::cuda {
namespace {

void never(ggml_tensor *, int, int, void *) {}  // the CPU's function; CUDA's nodes do not run there

ggml_custom_op_params params_of(const ggml_tensor * node) {
    ggml_custom_op_params params;
    std::memcpy(&params, node->op_params, sizeof params);
    return params;
}

}  // namespace

ggml_tensor * own_node(ggml_context * ctx, const OwnNode & work, const std::array<int64_t, 2> & shape,
                       std::vector<ggml_tensor *> inputs) {
    return ggml_custom_4d(ctx, GGML_TYPE_F32, shape[0], shape[1], 1, 1, inputs.data(), static_cast<int>(inputs.size()),
                          never, 1, const_cast<OwnNode *>(&work));
}

ggml_tensor * own_node_inplace(ggml_context * ctx, const OwnNode & work, ggml_tensor * to, ggml_tensor * input) {
    return ggml_custom_inplace(ctx, to, &input, 1, never, 1, const_cast<OwnNode *>(&work));
}

bool is_own(const ggml_tensor * node) {
    return node->op == GGML_OP_CUSTOM && params_of(node).fun == never;
}

const OwnNode & work_of(const ggml_tensor * node) {
    return *static_cast<const OwnNode *>(params_of(node).userdata);
}

}  // namespace zipcache::cuda

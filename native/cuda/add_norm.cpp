#include "cuda/add_norm.h"

#include <cstring>

#include "ggml-impl.h"

namespace zipcache::cuda {
namespace {

bool plain(const ggml_tensor * t) {
    return t->type == GGML_TYPE_F32 && ggml_is_contiguous(t) && reinterpret_cast<uintptr_t>(t->data) % 16 == 0;
}

// In one place or apart: rows of one are not read where rows of the other were written.
bool rows_apart(const ggml_tensor * a, const ggml_tensor * b) {
    const auto *p = static_cast<const char *>(a->data), *q = static_cast<const char *>(b->data);
    return p == q || p + ggml_nbytes(a) <= q || q + ggml_nbytes(b) <= p;
}

}  // namespace

bool is_add_norm(const ggml_cgraph * graph, int i, AddNorm & args) {
    if (i + kAddNormNodes > graph->n_nodes) {
        return false;
    }
    const ggml_tensor *sum = graph->nodes[i], *norm = graph->nodes[i + 1], *out = graph->nodes[i + 2];
    if (sum->op != GGML_OP_ADD || norm->op != GGML_OP_RMS_NORM || out->op != GGML_OP_MUL || norm->src[0] != sum ||
        out->src[0] != norm || ggml_node_get_use_count(graph, i + 1) != 1 || norm->flags & GGML_TENSOR_FLAG_OUTPUT) {
        return false;
    }
    const ggml_tensor *x = sum->src[0], *y = sum->src[1], *weight = out->src[1];
    const int64_t n = sum->ne[0], n_rows = ggml_nrows(sum);
    if (n % 4 != 0 || n > kMostAddNorm || !plain(x) || !plain(y) || !plain(weight) || !plain(sum) || !plain(out) ||
        !ggml_are_same_shape(x, y) || ggml_nelements(weight) != n ||
        (n_rows > 1 && !(rows_apart(out, x) && rows_apart(out, y)))) {
        return false;
    }
    auto at = [](const ggml_tensor * t) { return static_cast<float4 *>(t->data); };
    args = {n, n_rows, 0, at(x), at(y), at(weight), at(sum), at(out)};
    std::memcpy(&args.eps, norm->op_params, sizeof args.eps);
    return true;
}

}  // namespace zipcache::cuda

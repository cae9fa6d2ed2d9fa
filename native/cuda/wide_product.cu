#include "cuda/wide_product.h"

#include <cuda_bf16.h>

#include "cuda/check.h"
#include "device/own_node.h"

// Of ggml's CUDA backend, which tells of it in a private header alone (ggml-cuda/convert.cuh): from a type to bf16, n
// elements without gaps; null where there is no such kernel.
using to_bf16_t = void (*)(const void * from, nv_bfloat16 * to, int64_t n, cudaStream_t stream);
to_bf16_t ggml_get_to_bf16_cuda(ggml_type type);

namespace zipcache::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 8;  // elements of a thread: rows of quantized weights are multiples of 32

// ggml's takes one element a thread, and the activations are read and written as often as the weights.
__global__ void floats_to_bf16(const float4 * from, uint4 * to, int64_t n) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i < n) {
        const float4 a = from[2 * i], b = from[2 * i + 1];
        const __nv_bfloat162 pairs[4] = {__floats2bfloat162_rn(a.x, a.y), __floats2bfloat162_rn(a.z, a.w),
                                         __floats2bfloat162_rn(b.x, b.y), __floats2bfloat162_rn(b.z, b.w)};
        to[i] = *reinterpret_cast<const uint4 *>(pairs);
    }
}

class ToBf16 : public OwnNode {
  public:
    void enqueue(const ggml_tensor * node, void * queue) const override {
        const ggml_tensor * from = node->src[0];
        const auto stream = static_cast<cudaStream_t>(queue);
        if (from->type == GGML_TYPE_F32) {
            const int64_t n = ggml_nelements(from) / kEach;
            floats_to_bf16<<<static_cast<unsigned>((n + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
                static_cast<const float4 *>(from->data), static_cast<uint4 *>(node->data), n);
        } else {
            ggml_get_to_bf16_cuda(from->type)(from->data, static_cast<nv_bfloat16 *>(node->data), ggml_nelements(from),
                                              stream);
        }
    }
};

const ToBf16 kToBf16;

ggml_tensor * in_bf16(ggml_context * ctx, ggml_tensor * x) {
    return own_node(ctx, kToBf16, {x->ne[0], x->ne[1]}, {x}, GGML_TYPE_BF16);
}

// One for all products of x in a graph.
ggml_tensor * shared_in_bf16(ggml_context * ctx, ggml_tensor * x) {
    for (ggml_tensor * t = ggml_get_next_tensor(ctx, x); t; t = ggml_get_next_tensor(ctx, t)) {
        if (t->extra == &kToBf16 && t->src[0] == x) {
            return t;
        }
    }
    return in_bf16(ctx, x);
}

bool is_matrix(const ggml_tensor * t) {
    return ggml_n_dims(t) <= 2 && ggml_is_contiguous(t);
}

}  // namespace

bool has_wide_product(int device) {
    int major = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "ask what the device is");
    return major == 9;
}

ggml_tensor * wide_product(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x) {
    if (!ggml_is_quantized(weight->type) || !ggml_get_to_bf16_cuda(weight->type) || !is_matrix(weight) ||
        !is_matrix(x)) {
        return nullptr;
    }
    return ggml_mul_mat(ctx, in_bf16(ctx, weight), shared_in_bf16(ctx, x));
}

}  // namespace zipcache::cuda

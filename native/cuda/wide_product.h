#pragma once
#include <cstdint>

#include "ggml.h"

namespace zipcache::cuda {

// ggml multiplies quantized weights in 8-bit integers, with mma. Hopper's tensor cores give their full rate to wgmma
// alone, which cuBLAS uses: from 256 tokens on it is faster to turn the weight into bf16 each time and to multiply
// there, and the sums are closer, for ggml rounds the activations to 8 bits.

// Tokens. Chunks of 256 are those behind long contexts, where little is gained and memory for the copies is dear.
constexpr int64_t kLeastWide = 320;

// Whether that is known to be so on a GPU.
bool has_wide_product(int device);

// weight * x [n_out, n_tokens] f32, summed in f32. null where ggml has no way from the weight's type to bf16.
ggml_tensor * wide_product(ggml_context * ctx, ggml_tensor * weight, ggml_tensor * x);

}  // namespace zipcache::cuda

#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace zipcache::cuda {

//   mask   device [n_queries, n_keys] f16: 0 in [first, last), elsewhere -inf
//   spans  device [n_queries, 2] i32: first, last
void fill_mask(void * mask, const int32_t * spans, int64_t n_keys, int64_t n_queries, cudaStream_t stream);

}  // namespace zipcache::cuda

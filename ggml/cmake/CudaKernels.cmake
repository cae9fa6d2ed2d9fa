# The CUDA kernels of ggml-zipcache, for CMAKE_CUDA_ARCHITECTURES (8.0 and later): a library of its own, so that what
# links ggml-zipcache needs no CUDA.
add_library(ggml-zipcache-cuda STATIC
  src/device/cuda.cu
  src/ops/attend_kv/append_kv_cuda.cu
  src/ops/attend_kv/attend_kv_cuda.cu
  src/ops/attend_kv/attend_kv_cuda_64.cu
  src/ops/attend_kv/attend_kv_cuda_64_any.cu
  src/ops/attend_kv/attend_kv_cuda_80.cu
  src/ops/attend_kv/attend_kv_cuda_80_any.cu
  src/ops/attend_kv/attend_kv_cuda_96.cu
  src/ops/attend_kv/attend_kv_cuda_96_any.cu
  src/ops/attend_kv/attend_kv_cuda_128.cu
  src/ops/attend_kv/attend_kv_cuda_128_any.cu
  src/ops/attend_kv/attend_kv_cuda_256.cu
  src/ops/attend_kv/attend_kv_cuda_256_any.cu
  src/ops/attend_kv/index_kv_cuda.cu
  src/ops/dequantize_kv/dequantize_kv_cuda.cu
  src/ops/quantize_kv/quantize_kv_cuda.cu
  src/ops/score_probes/score_probes_cuda.cu
)
target_include_directories(ggml-zipcache-cuda PRIVATE src)
target_compile_options(ggml-zipcache-cuda PRIVATE --expt-relaxed-constexpr)
# as the portable code rounds, so that both write the same codes
set_source_files_properties(
  src/ops/dequantize_kv/dequantize_kv_cuda.cu src/ops/quantize_kv/quantize_kv_cuda.cu
  PROPERTIES COMPILE_OPTIONS "-fmad=false")
target_link_libraries(ggml-zipcache-cuda PUBLIC ggml-zipcache CUDA::cudart)

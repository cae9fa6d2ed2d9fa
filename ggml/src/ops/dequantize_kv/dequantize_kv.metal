#include "ops/dequantize_kv/dequantize_kv_metal.h"

INSTANTIATE_KERNEL("clear_rows", zipcache::gpu::clear_rows<32>)
INSTANTIATE_KERNEL("dequantize_kv_64", zipcache::gpu::dequantize_kv<64>)
INSTANTIATE_KERNEL("dequantize_kv_80", zipcache::gpu::dequantize_kv<80>)
INSTANTIATE_KERNEL("dequantize_kv_96", zipcache::gpu::dequantize_kv<96>)
INSTANTIATE_KERNEL("dequantize_kv_128", zipcache::gpu::dequantize_kv<128>)
INSTANTIATE_KERNEL("dequantize_kv_256", zipcache::gpu::dequantize_kv<256>)

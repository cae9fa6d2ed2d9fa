#include "ops/attend_kv/attend_kv_metal.h"
#include "ops/attend_kv/attend_kv_metal_index.h"

INSTANTIATE_KERNEL("index_kv_segments", zipcache::gpu::index_kv_segments<zipcache::gpu::kIndexThreads>)
INSTANTIATE_KERNEL("index_kv_blocks", zipcache::gpu::index_kv_blocks<zipcache::gpu::kIndexThreads>)
INSTANTIATE_KERNEL("append_kv", zipcache::gpu::append_kv<zipcache::gpu::kAppendThreads>)
INSTANTIATE_KERNEL("attend_kv_64", zipcache::gpu::attend_kv<64>)
INSTANTIATE_KERNEL("attend_kv_80", zipcache::gpu::attend_kv<80>)
INSTANTIATE_KERNEL("attend_kv_96", zipcache::gpu::attend_kv<96>)
INSTANTIATE_KERNEL("attend_kv_128", zipcache::gpu::attend_kv<128>)
INSTANTIATE_KERNEL("attend_kv_256", zipcache::gpu::attend_kv<256>)
INSTANTIATE_KERNEL("attend_kv_merge", zipcache::gpu::attend_kv_merge<zipcache::gpu::kMergeThreads>)

#include "ops/top_ratio/top_ratio_metal.h"

INSTANTIATE_KERNEL("top_ratio", zipcache::gpu::top_ratio<zipcache::gpu::kRankThreads>)

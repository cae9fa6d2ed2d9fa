#include "metal/fill_metal.h"
#include "metal/places_metal.h"

INSTANTIATE_KERNEL("fill", zipcache::gpu::fill<zipcache::gpu::kFillThreads>)
INSTANTIATE_KERNEL("order_tokens", zipcache::gpu::order_tokens<zipcache::gpu::kOrderThreads>)
INSTANTIATE_KERNEL("positions", zipcache::gpu::positions<zipcache::gpu::kPositionThreads>)

#include "metal/fill_metal.h"
#include "metal/places_metal.h"

INSTANTIATE_KERNEL("fill", zipcache::gpu::fill<256>)
INSTANTIATE_KERNEL("order_tokens", zipcache::gpu::order_tokens<256>)
INSTANTIATE_KERNEL("positions", zipcache::gpu::positions<256>)

#include "ops/score_probes/score_probes_metal.h"

INSTANTIATE_KERNEL("score_probes_prepare", zipcache::gpu::score_probes_prepare<32>)
INSTANTIATE_KERNEL("score_probes_rows_64", zipcache::gpu::score_probes_rows<64>)
INSTANTIATE_KERNEL("score_probes_rows_80", zipcache::gpu::score_probes_rows<80>)
INSTANTIATE_KERNEL("score_probes_rows_96", zipcache::gpu::score_probes_rows<96>)
INSTANTIATE_KERNEL("score_probes_rows_128", zipcache::gpu::score_probes_rows<128>)
INSTANTIATE_KERNEL("score_probes_rows_256", zipcache::gpu::score_probes_rows<256>)
INSTANTIATE_KERNEL("score_probes_columns_64", zipcache::gpu::score_probes_columns<64>)
INSTANTIATE_KERNEL("score_probes_columns_80", zipcache::gpu::score_probes_columns<80>)
INSTANTIATE_KERNEL("score_probes_columns_96", zipcache::gpu::score_probes_columns<96>)
INSTANTIATE_KERNEL("score_probes_columns_128", zipcache::gpu::score_probes_columns<128>)
INSTANTIATE_KERNEL("score_probes_columns_256", zipcache::gpu::score_probes_columns<256>)

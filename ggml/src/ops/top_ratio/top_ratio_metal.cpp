// The dispatch of top_ratio.
#include "metal/encode.h"

const char * ggml_zipcache_metal_top_ratio(const ggml_zipcache_metal_ranking * ranking,
                                           const ggml_zipcache_metal_encoder * encoder) {
    using namespace zipcache::metal_abi;
    const auto & r = *ranking;
    if (r.n_ranks < 1 || r.n < 1 || r.n_salient < 0 || r.n_salient > r.n) {
        return "top_ratio got no tokens, or more salient ones than there are; accepted: 0 to n of them";
    }
    const RankParams params = {r.saliency, r.tier, r.n, r.n_salient};
    Encoder(*encoder).dispatch("top_ratio", params, {r.n_ranks, 1, 1, kRankThreads, rank_threadgroup_bytes()});
    return nullptr;
}

#include "segment.h"

namespace {

const char * side_error(const ggml_zipcache_format & f, const ggml_zipcache_side & side) {
    const bool by_token = side.scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    for (int i = 0; i < f.n_tiers; ++i) {
        if (side.bits[i] < 0 || (side.bits[i] > 8 && side.bits[i] != zipcache::format::kUncoded)) {
            return "a segment's bits; accepted: 0 to 8, 16";
        }
        if (side.params >= GGML_ZIPCACHE_PARAMS_F8_PAIR && !(side.shrink[i] > 0 && side.shrink[i] <= 1)) {
            return "a tier's share of the range; accepted: above 0, at most 1";
        }
    }
    if (side.scope < GGML_ZIPCACHE_SCOPE_SEGMENT || side.scope > GGML_ZIPCACHE_SCOPE_TOKEN) {
        return "a segment's scope of parameters; accepted: segment, group, token";
    }
    if (side.params < GGML_ZIPCACHE_PARAMS_F16_PAIR || side.params > GGML_ZIPCACHE_PARAMS_F8_SCALE) {
        return "a segment's parameters; accepted: F16 pair, F16 scale, F8 pair, F8 scale";
    }
    if (!by_token && (side.params == GGML_ZIPCACHE_PARAMS_F16_SCALE || side.params == GGML_ZIPCACHE_PARAMS_F8_SCALE)) {
        return "parameters without a min for channels; accepted: pairs";
    }
    const bool all_heads = side.block == f.n_kv_heads * f.head_dim;
    if (by_token && (side.block < 1 || (f.head_dim % side.block != 0 && !all_heads))) {
        return "channels that share a token's parameters; accepted: a divisor of head_dim, or all channels of a layer";
    }
    if (by_token && side.block > f.head_dim && (!f.same_order || side.params != GGML_ZIPCACHE_PARAMS_F16_PAIR)) {
        return "a token's parameters for all heads; accepted: F16 pairs, heads of the same order";
    }
    return nullptr;
}

}  // namespace

bool ggml_zipcache_evicts(const ggml_zipcache_format * format) {
    bool any = false;
    for (int t = 0; t < format->n_tiers; ++t) {
        any |= zipcache::format::evicts(*format, t);
    }
    return any;
}

const char * ggml_zipcache_format_error(const ggml_zipcache_format * format) {
    const auto & f = *format;
    if (f.n_kv_heads < 1 || f.n_kv_heads > 1024 || f.head_dim < 1 || f.head_dim > 1024) {
        return "a segment's KV heads or head_dim; accepted: 1 to 1024";
    }
    if (f.group < GGML_ZIPCACHE_TILE || f.group > GGML_ZIPCACHE_GROUP || f.group % GGML_ZIPCACHE_TILE != 0) {
        return "tokens of a block; accepted: multiples of 8 up to 64";
    }
    if (f.n_tiers < 1 || f.n_tiers > GGML_ZIPCACHE_MAX_TIERS) {
        return "a segment's number of tiers; accepted: 1 to 12";
    }
    for (int i = 0; i < f.n_tiers; ++i) {
        if (f.k.bits[i] == 0 && f.v.bits[i] != 0) {
            return "a value without a key; accepted: a tier that evicts both";
        }
    }
    if (const char * error = side_error(f, f.k)) {
        return error;
    }
    return side_error(f, f.v);
}

#include "format.h"

namespace {

const char * side_error(const ggml_zipcache_side & side, int head_dim) {
    if (side.n_tiers < 1 || side.n_tiers > GGML_ZIPCACHE_MAX_TIERS) {
        return "a segment's number of tiers; accepted: 1 to 4";
    }
    for (int i = 0; i < side.n_tiers; ++i) {
        if (side.bits[i] < 0 || side.bits[i] > 8 || (i > 0 && side.bits[i] >= side.bits[i - 1])) {
            return "a segment's bits; accepted: 0 to 8, each tier fewer than the one before";
        }
    }
    if (side.scope < GGML_ZIPCACHE_SCOPE_SEGMENT || side.scope > GGML_ZIPCACHE_SCOPE_TOKEN) {
        return "a segment's scope of parameters; accepted: segment, group, token";
    }
    if (side.scope == GGML_ZIPCACHE_SCOPE_TOKEN && (side.block < 1 || head_dim % side.block != 0)) {
        return "channels that share a token's parameters; accepted: a divisor of head_dim";
    }
    if (side.rotate && (head_dim & (head_dim - 1)) != 0) {
        return "rotation of a head_dim that is no power of two; accepted: none";
    }
    return nullptr;
}

}  // namespace

const char * ggml_zipcache_format_error(const ggml_zipcache_format * format) {
    const auto & f = *format;
    if (f.n_kv_heads < 1 || f.n_kv_heads > 1024 || f.head_dim < 1 || f.head_dim > 1024) {
        return "a segment's KV heads or head_dim; accepted: 1 to 1024";
    }
    if (const char * error = side_error(f.k, f.head_dim)) {
        return error;
    }
    if (const char * error = side_error(f.v, f.head_dim)) {
        return error;
    }
    if (f.same_order) {
        bool same = f.k.n_tiers == f.v.n_tiers;
        for (int i = 0; same && i < f.k.n_tiers; ++i) {
            same = (f.k.bits[i] > 0) == (f.v.bits[i] > 0);
        }
        if (!same) {
            return "tiers of K and V that share an order; accepted: as many, evicted in the same ones";
        }
    }
    return nullptr;
}

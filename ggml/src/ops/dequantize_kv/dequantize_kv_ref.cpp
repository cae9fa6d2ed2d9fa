#include <algorithm>
#include <cstring>
#include <vector>

#include "segment.h"
#include "transform.h"

namespace {

using namespace zipcache::format;

// One side (K or V) of one block.
struct Side {
    const ggml_zipcache_side & how;
    int dim;
    bool is_key;
    const SideLayout & layout;
    const uint8_t * counts;
    const uint8_t * block;
    const Pair * pairs;  // of its scope

    int code(int tier, int place, int channel) const {
        const uint8_t * plane = block + layout.tier_codes[tier];
        const int n_places = tile_places(counts[tier]);
        const Planes planes = planes_of(how.bits[tier]);
        int value = 0;
        for (int i = 0, low = 0; i < planes.n; low += planes.width[i++]) {
            const int width = planes.width[i];
            const Spot spot = is_key ? k_spot(place, channel, dim, width) : v_spot(place, channel, dim, width);
            value |= (plane[spot.byte] >> spot.shift & ((1 << width) - 1)) << low;
            plane += is_key ? k_plane_bytes(n_places, dim, width) : v_plane_bytes(n_places, dim, width);
        }
        return value;
    }

    void row(int tier, int place, int pair_place, const float * divisor, float * x) const {
        std::fill_n(x, dim, 0.0f);
        if (place >= 0) {
            for (int c = 0; c < dim; ++c) {
                const Pair & pair = how.scope == GGML_ZIPCACHE_SCOPE_TOKEN
                                        ? pairs[pair_place * (dim / how.block) + c / how.block]
                                        : pairs[tier * dim + c];
                x[c] = ggml_fp16_to_fp32(pair.scale) * float(code(tier, place - layout.first_place[tier], c)) +
                       ggml_fp16_to_fp32(pair.min);
            }
            if (how.rotate) {
                zipcache::walsh_hadamard(x, dim);
            }
            for (int c = 0; divisor && c < dim; ++c) {
                x[c] *= divisor[c];
            }
        }
    }
};

}  // namespace

void zipcache::format::dequantize(const ggml_zipcache_format & f, const uint8_t * segment, int64_t first, int64_t n,
                                  const float * k_divisor, const float * v_divisor, int64_t stride, float * k,
                                  float * v, uint8_t * kept) {
    const int dim = f.head_dim;
    SegmentHeader header;
    std::memcpy(&header, segment, sizeof header);
    const SegmentLayout layout(f, header.n_tokens);
    const auto * directory = reinterpret_cast<const uint32_t *>(segment + layout.directory);
    for (int head = 0; head < f.n_kv_heads; ++head) {
        const auto * k_pairs =
            reinterpret_cast<const Pair *>(segment + layout.k_pairs) + int64_t(head) * f.k.n_tiers * dim;
        const auto * v_pairs =
            reinterpret_cast<const Pair *>(segment + layout.v_pairs) + int64_t(head) * f.v.n_tiers * dim;
        for (int64_t group = first / kGroup; group * kGroup < first + n; ++group) {
            const uint8_t * block = segment + directory[group * f.n_kv_heads + head];
            const auto & counts = *reinterpret_cast<const BlockHeader *>(block);
            const BlockLayout at(f, counts);
            const auto * own_k = reinterpret_cast<const Pair *>(block + at.k.pairs);
            const auto * own_v = reinterpret_cast<const Pair *>(block + at.v.pairs);
            const Side keys = {
                f.k, dim, true, at.k, counts.n_k, block, f.k.scope == GGML_ZIPCACHE_SCOPE_SEGMENT ? k_pairs : own_k};
            const Side values = {
                f.v, dim, false, at.v, counts.n_v, block, f.v.scope == GGML_ZIPCACHE_SCOPE_SEGMENT ? v_pairs : own_v};
            const int64_t start = group * kGroup;
            const int in_group = group_tokens(group, header.n_tokens);
            int16_t k_places[kGroup], v_places[kGroup];
            token_places(f.k, at.k, counts.k_tier, in_group, k_places);
            token_places(f.v, at.v, counts.v_tier, in_group, v_places);
            for (int i = 0; i < in_group; ++i) {
                const int64_t token = start + i - first;
                if (token < 0 || token >= n) {
                    continue;
                }
                const int64_t to = (head * stride + token) * dim;
                kept[head * n + token] = k_places[i] >= 0;
                keys.row(tier_of(counts.k_tier, i), k_places[i], k_places[i],
                         k_divisor ? k_divisor + head * dim : nullptr, k + to);
                values.row(tier_of(counts.v_tier, i), v_places[i], k_places[i],
                           v_divisor ? v_divisor + head * dim : nullptr, v + to);
            }
        }
    }
}

void ggml_zipcache_dequantize_kv(const ggml_zipcache_format * format, const uint8_t * segment, int64_t first, int64_t n,
                                 const float * k_divisor, const float * v_divisor, int64_t stride, uint16_t * k,
                                 uint16_t * v) {
    const int64_t heads = format->n_kv_heads, dim = format->head_dim;
    std::vector<float> k_rows(heads * n * dim), v_rows(k_rows.size());
    std::vector<uint8_t> kept(heads * n);
    dequantize(*format, segment, first, n, k_divisor, v_divisor, n, k_rows.data(), v_rows.data(), kept.data());
    for (int64_t head = 0; head < heads; ++head) {
        ggml_fp32_to_fp16_row(&k_rows[head * n * dim], k + head * stride * dim, n * dim);
        ggml_fp32_to_fp16_row(&v_rows[head * n * dim], v + head * stride * dim, n * dim);
    }
}

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "segment.h"
#include "transform.h"

namespace {

using namespace zipcache::format;

struct Range {
    float min = std::numeric_limits<float>::infinity();
    float max = -std::numeric_limits<float>::infinity();

    void take(float x) {
        min = std::min(min, x);
        max = std::max(max, x);
    }
    // Nothing in it: an unused pair, written as zeros so that equal input gives equal bytes.
    Pair pair(int bits) const {
        if (min > max) {
            return {0, 0};
        }
        const ggml_fp16_t low = ggml_fp32_to_fp16(min);
        const float range = std::max(0.0f, max - ggml_fp16_to_fp32(low));
        return {ggml_fp32_to_fp16(range / static_cast<float>((1 << bits) - 1)), low};
    }
};

int code_of(float x, Pair pair, int bits) {
    const float scale = ggml_fp16_to_fp32(pair.scale);
    if (scale == 0) {
        return 0;
    }
    const float code = std::round((x - ggml_fp16_to_fp32(pair.min)) / scale);
    return static_cast<int>(std::clamp(code, 0.0f, static_cast<float>((1 << bits) - 1)));
}

// One side (K or V) of one KV head.
struct Side {
    const ggml_zipcache_side & how;
    int dim;
    int64_t n_tokens;
    const uint8_t * tiers;  // [n_tokens]
    bool is_key;
    std::vector<float> x{};  // [n_tokens, dim], transformed

    int bits(int64_t token) const { return how.bits[tiers[token]]; }

    void load(const uint16_t * rows, const float * divisor) {
        x.resize(n_tokens * dim);
        ggml_fp16_to_fp32_row(rows, x.data(), n_tokens * dim);
        for (int64_t t = 0; t < n_tokens; ++t) {
            for (int c = 0; divisor && c < dim; ++c) {
                x[t * dim + c] /= divisor[c];
            }
            if (how.rotate) {
                zipcache::walsh_hadamard(&x[t * dim], dim);
            }
        }
    }

    // [n_tiers, dim] over tokens [first, last)
    void channel_pairs(int64_t first, int64_t last, Pair * to) const {
        for (int tier = 0; tier < how.n_tiers; ++tier) {
            for (int c = 0; c < dim; ++c, ++to) {
                Range range;
                for (int64_t t = first; t < last; ++t) {
                    if (tiers[t] == tier) {
                        range.take(x[t * dim + c]);
                    }
                }
                *to = how.bits[tier] > 0 ? range.pair(how.bits[tier]) : Pair{0, 0};
            }
        }
    }

    // [dim / block] of one token
    void token_pairs(int64_t token, Pair * to) const {
        for (int first = 0; first < dim; first += how.block) {
            Range range;
            for (int c = first; c < first + how.block; ++c) {
                range.take(x[token * dim + c]);
            }
            *to++ = range.pair(bits(token));
        }
    }

    // Codes of tokens [first, first + n), whose places are given. pairs: of their scope; pair_places: where a token's
    // own pairs stand (scope token).
    void write_codes(int64_t first, int n, const SideLayout & layout, const int16_t * places, const Pair * pairs,
                     const int16_t * pair_places, uint8_t * block, const uint8_t * counts) const {
        for (int i = 0; i < n; ++i) {
            const int64_t token = first + i;
            const int tier = tiers[token];
            for (int c = 0; c < dim && places[i] >= 0; ++c) {
                const int64_t pair = how.scope == GGML_ZIPCACHE_SCOPE_TOKEN
                                         ? pair_places[i] * (dim / how.block) + c / how.block
                                         : tier * dim + c;
                put(code_of(x[token * dim + c], pairs[pair], how.bits[tier]), how.bits[tier],
                    places[i] - layout.first_place[tier], c, tile_places(counts[tier]),
                    block + layout.tier_codes[tier]);
            }
        }
    }

  private:
    void put(int code, int n_bits, int place, int channel, int n_places, uint8_t * plane) const {
        const Planes planes = planes_of(n_bits);
        for (int i = 0; i < planes.n; ++i) {
            const int width = planes.width[i];
            const Spot spot = is_key ? k_spot(place, channel, dim, width) : v_spot(place, channel, dim, width);
            plane[spot.byte] |= static_cast<uint8_t>((code & ((1 << width) - 1)) << spot.shift);
            code >>= width;
            plane += is_key ? k_plane_bytes(n_places, dim, width) : v_plane_bytes(n_places, dim, width);
        }
    }
};

BlockHeader block_header(const uint8_t * k_tiers, const uint8_t * v_tiers, int n) {
    BlockHeader header = {};
    for (int i = 0; i < n; ++i) {
        ++header.n_k[k_tiers[i]];
        ++header.n_v[v_tiers[i]];
        header.k_tier[i / 4] |= static_cast<uint8_t>(k_tiers[i] << (i % 4 * 2));
        header.v_tier[i / 4] |= static_cast<uint8_t>(v_tiers[i] << (i % 4 * 2));
    }
    return header;
}

// Parameters of the scopes that live in the block; for scope `segment` those given are used.
const Pair * block_pairs(const Side & side, int64_t first, int n, const int16_t * places, const Pair * segment,
                         Pair * to) {
    if (side.how.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
        return segment;
    }
    if (side.how.scope == GGML_ZIPCACHE_SCOPE_GROUP) {
        side.channel_pairs(first, first + n, to);
    } else {
        for (int i = 0; i < n; ++i) {
            if (side.bits(first + i) > 0) {
                side.token_pairs(first + i, to + int64_t(places[i]) * (side.dim / side.how.block));
            }
        }
    }
    return to;
}

void write_block(const ggml_zipcache_format & f, const Side & k, const Side & v, int64_t first, const Pair * k_segment,
                 const Pair * v_segment, uint8_t * block) {
    const int n = group_tokens(first / kGroup, k.n_tokens);
    const BlockHeader header = block_header(k.tiers + first, v.tiers + first, n);
    const BlockLayout layout(f, header);
    std::memcpy(block, &header, sizeof header);
    int16_t k_places[kGroup], v_places[kGroup];
    token_places(f.k, layout.k, header.k_tier, n, k_places);
    token_places(f.v, layout.v, header.v_tier, n, v_places);
    for (int i = 0; i < n && !f.same_order; ++i) {
        if (v_places[i] >= 0) {
            block[layout.join + v_places[i]] = static_cast<uint8_t>(k_places[i]);
        }
    }
    const Pair * pairs =
        block_pairs(k, first, n, k_places, k_segment, reinterpret_cast<Pair *>(block + layout.k.pairs));
    k.write_codes(first, n, layout.k, k_places, pairs, k_places, block, header.n_k);
    pairs = block_pairs(v, first, n, k_places, v_segment, reinterpret_cast<Pair *>(block + layout.v.pairs));
    v.write_codes(first, n, layout.v, v_places, pairs, k_places, block, header.n_v);
}

void write_head(const ggml_zipcache_format & f, const ggml_zipcache_rows & rows, int head, Side & k, Side & v,
                uint8_t * segment) {
    const SegmentLayout layout(f, rows.n_tokens);
    const int64_t row = head * rows.stride * f.head_dim;
    k.load(rows.k + row, rows.k_divisor ? rows.k_divisor + int64_t(head) * f.head_dim : nullptr);
    v.load(rows.v + row, rows.v_divisor ? rows.v_divisor + int64_t(head) * f.head_dim : nullptr);
    auto * k_pairs = reinterpret_cast<Pair *>(segment + layout.k_pairs) + segment_pairs(f, f.k) / f.n_kv_heads * head;
    auto * v_pairs = reinterpret_cast<Pair *>(segment + layout.v_pairs) + segment_pairs(f, f.v) / f.n_kv_heads * head;
    if (f.k.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
        k.channel_pairs(0, rows.n_tokens, k_pairs);
    }
    if (f.v.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
        v.channel_pairs(0, rows.n_tokens, v_pairs);
    }
    const auto * directory = reinterpret_cast<const uint32_t *>(segment + layout.directory);
    for (int64_t group = 0; group < n_groups(rows.n_tokens); ++group) {
        write_block(f, k, v, group * kGroup, k_pairs, v_pairs, segment + directory[group * f.n_kv_heads + head]);
    }
}

}  // namespace

size_t ggml_zipcache_quantize_kv(const ggml_zipcache_format * format, const ggml_zipcache_rows * rows, uint8_t * to) {
    const auto & f = *format;
    const int64_t n = rows->n_tokens;
    const SegmentLayout layout(f, n);
    const uint8_t * v_tiers = f.same_order ? rows->k_tier : rows->v_tier;
    int64_t size = layout.blocks;
    std::vector<uint32_t> directory;
    for (int64_t group = 0; group < n_groups(n); ++group) {
        for (int head = 0; head < f.n_kv_heads; ++head) {
            const int64_t at = head * n + group * kGroup;
            directory.push_back(static_cast<uint32_t>(size));
            size += BlockLayout(f, block_header(rows->k_tier + at, v_tiers + at, group_tokens(group, n))).size;
        }
    }
    if (!to) {
        return size;
    }
    std::memset(to, 0, size);
    const SegmentHeader header = {
        kMagic, static_cast<uint32_t>(n), static_cast<uint32_t>(n_groups(n)), static_cast<uint32_t>(size), {}};
    std::memcpy(to, &header, sizeof header);
    std::memcpy(to + layout.directory, directory.data(), directory.size() * sizeof(uint32_t));
    for (int head = 0; head < f.n_kv_heads; ++head) {
        Side k = {f.k, f.head_dim, n, rows->k_tier + head * n, true};
        Side v = {f.v, f.head_dim, n, v_tiers + head * n, false};
        write_head(f, *rows, head, k, v, to);
    }
    return size;
}

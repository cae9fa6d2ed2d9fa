#pragma once
// The byte layout of a segment: the compressed tokens of one compression of one layer. Immutable once written.
//
//   header     SegmentHeader
//   heads      [n_kv_heads] of: [n_tiers] u32 tokens in each tier; [n_tiers] u32 where the tier's first block begins,
//              from the start of the segment; HeadUnits
//   tags       [n_orders, tag_bytes] u8: the tier of each token in time order, 2 bits each up to 4 tiers, else 4, low
//              bits first; n_orders is 1 where all heads share their order, else n_kv_heads; none for a single tier
//   parameters of scope `segment`, K then V
//   parameters by token that all heads share: K then V, [n_places]
//   blocks     head by head, tier by tier
//
// Order: in a head the tokens are sorted by tier; in a tier they keep their order in time. A block holds `group` tokens
// of one tier, the last of a tier the rest. Its places are padded to a multiple of kTile; so a vector never holds two
// tiers, and the padding is at most 7 places a tier. Places are numbered through the tiers. Evicted tokens have none.
//
// A block of n places:
//   K codes, V codes: plane by plane; a side of 16 bits holds [n, head_dim] f16 instead, and has no parameters here
//   K parameters, V parameters: of scope `group` [head_dim], of scope `token` [head_dim / block, n]
// Parameters of n entries: F16_PAIR [n] Pair; F16_SCALE [n] f16; F8_PAIR [n] u8 ranges, then [n] i8 middles; F8_SCALE
// [n] u8 ranges. An 8-bit range u means unit * (2^(u / 16) * (1 + u % 16 / 16) - 1) with integer division: a float of
// 4 mantissa bits that has a zero. A middle m means m * mid_unit for channels, m * range / 256 for tokens.
// Header, heads, tags, parameters, blocks begin at multiples of kAlign.
//
// Planes: a code of b bits is cut into planes of 4, 2 and 1 bits, the widest first with the lowest bits (8 = 4 + 4,
// 3 = 2 + 1). A plane of width w is a row of 32-byte vectors; byte i of a vector holds 8 / w codes, sub-vector s in
// its bits [s w, s w + w):
//   K  8 places by 32 / w channels; byte = place % 8 * 4 + channel % 4, s = channel % (32 / w) / 4
//   V  4 places by 64 / w channels; byte = channel % 8 * 4 + place % 4, s = channel % (64 / w) / 8
// so that four neighbouring bytes meet four int8 of the query (K) or of the probabilities (V) in one multiply-add,
// with tokens (K) or channels (V) in the 32-bit lanes and no sum across lanes.
#include <cstddef>
#include <cstdint>

#include "ggml-zipcache.h"

namespace zipcache::format {

constexpr int kGroup = GGML_ZIPCACHE_GROUP;
constexpr int kTile = GGML_ZIPCACHE_TILE;
constexpr int kMaxTiers = GGML_ZIPCACHE_MAX_TIERS;
constexpr int kVector = 32;  // bytes
constexpr int kAlign = 32;
constexpr int kUncoded = 16;             // bits: f16 as it is
constexpr uint32_t kMagic = 0x3243495A;  // "ZIC2"

struct SegmentHeader {
    uint32_t magic;
    uint32_t n_tokens;
    uint32_t n_bytes;
    uint32_t n_places;
};
static_assert(sizeof(SegmentHeader) == 16);

// What the 8-bit parameters of a head are counted in.
struct HeadUnits {
    float k_range, k_mid, v_range, v_mid;
};
static_assert(sizeof(HeadUnits) == 16);

// x' = scale * code + min
struct Pair {
    ggml_fp16_t scale;
    ggml_fp16_t min;
};
static_assert(sizeof(Pair) == 4);

constexpr int64_t align(int64_t n) {
    return (n + kAlign - 1) / kAlign * kAlign;
}

constexpr int64_t tile_places(int64_t n) {
    return (n + kTile - 1) / kTile * kTile;
}

// The planes of a code, widest first.
struct Planes {
    int n = 0;
    int width[3] = {};
};

constexpr Planes planes_of(int bits) {
    Planes planes;
    for (int width = 4; width >= 1; width /= 2) {
        for (; bits >= width; bits -= width) {
            planes.width[planes.n++] = width;
        }
    }
    return planes;
}

constexpr int vectors_across(int channels_of_a_vector, int head_dim) {
    return (head_dim + channels_of_a_vector - 1) / channels_of_a_vector;
}

constexpr int64_t k_plane_bytes(int64_t places, int head_dim, int width) {
    return places / 8 * vectors_across(32 / width, head_dim) * kVector;
}

constexpr int64_t v_plane_bytes(int64_t places, int head_dim, int width) {
    return places / 4 * vectors_across(64 / width, head_dim) * kVector;
}

// Bytes of the codes of one side of a block.
constexpr int64_t codes_bytes(int64_t places, int head_dim, int bits, bool is_key) {
    if (bits == kUncoded) {
        return places * head_dim * int64_t(sizeof(ggml_fp16_t));
    }
    const Planes planes = planes_of(bits);
    int64_t bytes = 0;
    for (int i = 0; i < planes.n; ++i) {
        bytes += is_key ? k_plane_bytes(places, head_dim, planes.width[i])
                        : v_plane_bytes(places, head_dim, planes.width[i]);
    }
    return bytes;
}

// Where a code's bits lie in its plane.
struct Spot {
    int64_t byte;
    int shift;
};

constexpr Spot k_spot(int place, int channel, int head_dim, int width) {
    const int channels = 32 / width;
    const int64_t vector = int64_t(place / 8) * vectors_across(channels, head_dim) + channel / channels;
    return {vector * kVector + place % 8 * 4 + channel % 4, channel % channels / 4 * width};
}

constexpr Spot v_spot(int place, int channel, int head_dim, int width) {
    const int channels = 64 / width;
    const int64_t vector = int64_t(place / 4) * vectors_across(channels, head_dim) + channel / channels;
    return {vector * kVector + channel % 8 * 4 + place % 4, channel % channels / 8 * width};
}

}  // namespace zipcache::format

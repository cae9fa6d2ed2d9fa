#pragma once
// The byte layout of a segment: the compressed tokens of one compression of one layer. Immutable once written.
//
//   header     SegmentHeader
//   directory  [n_groups, n_kv_heads] u32: where each block begins, from the start of the segment
//   parameters of scope `segment`, K then V: [n_kv_heads, n_tiers, head_dim] Pair
//   blocks     one for each group of 64 consecutive tokens of one KV head
//
// A block:
//   BlockHeader
//   join       [kGroup] u8, only if K and V have orders of their own: join[V's place] = K's place
//   K codes, V codes: tier by tier, plane by plane
//   K parameters, V parameters: scopes `group` ([n_tiers, head_dim] Pair) and `token` ([n_places, n_blocks] Pair, by
//              K's places for both, so that V's scales meet the probabilities before the permutation)
// Blocks, codes and parameters begin at multiples of kAlign.
//
// Places: inside a block the tokens are sorted by tier, K and V each by its own; in a tier they keep their order in
// time. Each tier begins at a multiple of kTile places, so a vector never holds two tiers. Places behind a tier's last
// token hold code 0.
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
constexpr uint32_t kMagic = 0x5343495A;  // "ZICS"

struct SegmentHeader {
    uint32_t magic;
    uint32_t n_tokens;
    uint32_t n_groups;
    uint32_t n_bytes;
    uint8_t reserved[16];
};
static_assert(sizeof(SegmentHeader) == 32);

struct BlockHeader {
    uint8_t n_k[kMaxTiers];      // tokens in each tier
    uint8_t n_v[kMaxTiers];      // tokens in each tier
    uint8_t k_tier[kGroup / 4];  // 2 bits a token, in time order
    uint8_t v_tier[kGroup / 4];
    uint8_t reserved[24];
};
static_assert(sizeof(BlockHeader) == 64);

// x' = scale * code + min
struct Pair {
    ggml_fp16_t scale;
    ggml_fp16_t min;
};
static_assert(sizeof(Pair) == 4);

constexpr int64_t align(int64_t n) {
    return (n + kAlign - 1) / kAlign * kAlign;
}

constexpr int tile_places(int n) {
    return (n + kTile - 1) / kTile * kTile;
}

// The planes of a code, widest first.
struct Planes {
    int n = 0;
    int width[2 + 1 + 1] = {};
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

constexpr int k_plane_bytes(int places, int head_dim, int width) {
    const int channels = 32 / width;
    return places / 8 * ((head_dim + channels - 1) / channels) * kVector;
}

constexpr int v_plane_bytes(int places, int head_dim, int width) {
    const int channels = 64 / width;
    return places / 4 * ((head_dim + channels - 1) / channels) * kVector;
}

// Where a code's bits lie in its plane.
struct Spot {
    int64_t byte;
    int shift;
};

constexpr Spot k_spot(int place, int channel, int head_dim, int width) {
    const int channels = 32 / width;
    const int64_t vector = int64_t(place / 8) * ((head_dim + channels - 1) / channels) + channel / channels;
    return {vector * kVector + place % 8 * 4 + channel % 4, channel % channels / 4 * width};
}

constexpr Spot v_spot(int place, int channel, int head_dim, int width) {
    const int channels = 64 / width;
    const int64_t vector = int64_t(place / 4) * ((head_dim + channels - 1) / channels) + channel / channels;
    return {vector * kVector + channel % 8 * 4 + place % 4, channel % channels / 8 * width};
}

}  // namespace zipcache::format

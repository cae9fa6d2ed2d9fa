#pragma once
// The byte layout of a correction: what the codes of a segment lack (GEAR), beside it. For segments of one tier,
// neither rotated nor divided, so that a place is a token. Immutable once written.
//
//   header   CorrectionHeader
//   table    [n_kv_heads, 2] u32: where the sides of each head begin, K then V, from the start of the correction
//   sides    head by head, K then V, each:
//     basis     [rank, head_dim] f16
//     factors   [rank, n_places] f16, n_places = n_tokens rounded up to a tile
//     starts    [n_blocks + 1] u32: the first outlier of each block of the segment, and their number
//     outliers  [their number] Outlier, in the order of blocks, places, channels
// All of them begin at multiples of 4.
//
// x = x' + sum over r of factors[r] * basis[r], where x' is what the codes give, and more of an outlier: its value.
#include <algorithm>

#include "segment.h"

namespace zipcache::format {

constexpr int kMaxRank = GGML_ZIPCACHE_MAX_RANK;
constexpr uint32_t kCorrectionMagic = 0x3143435A;  // "ZCC1"

struct CorrectionHeader {
    uint32_t magic;
    uint32_t n_tokens;
    uint32_t n_bytes;
    uint32_t rank;
};
static_assert(sizeof(CorrectionHeader) == 16);

struct Outlier {
    uint16_t spot;  // place in its block << 10 | channel
    ggml_fp16_t value;

    int place() const { return spot >> 10; }
    int channel() const { return spot & 1023; }
};
static_assert(sizeof(Outlier) == 4 && kGroup <= 64);

constexpr int64_t align4(int64_t n) {
    return (n + 3) / 4 * 4;
}

inline int64_t correction_blocks(const ggml_zipcache_format & f, int64_t n_tokens) {
    return (n_tokens + f.group - 1) / f.group;
}

// A side: offsets from its start.
struct CorrectionLayout {
    int64_t factors, starts, outliers;

    CorrectionLayout(const ggml_zipcache_format & f, int64_t n_tokens, int64_t rank) {
        factors = align4(rank * f.head_dim * int64_t(sizeof(ggml_fp16_t)));
        starts = factors + align4(rank * tile_places(n_tokens) * int64_t(sizeof(ggml_fp16_t)));
        outliers = starts + (correction_blocks(f, n_tokens) + 1) * int64_t(sizeof(uint32_t));
    }
    int64_t bytes(int64_t n_outliers) const { return outliers + n_outliers * int64_t(sizeof(Outlier)); }
};

inline int64_t correction_sides(const ggml_zipcache_format & f) {  // where the first begins
    return int64_t(sizeof(CorrectionHeader)) + 2 * f.n_kv_heads * int64_t(sizeof(uint32_t));
}

inline const CorrectionHeader & correction_header(const uint8_t * correction) {
    return *reinterpret_cast<const CorrectionHeader *>(correction);
}

// One side of one head.
struct CorrectionView {
    int rank = 0;
    int64_t n_places = 0;
    const ggml_fp16_t * basis = nullptr;    // [rank, head_dim]
    const ggml_fp16_t * factors = nullptr;  // [rank, n_places]
    const uint32_t * starts = nullptr;      // [n_blocks + 1]
    const Outlier * outliers = nullptr;
};

// Defined in correct_kv.cpp, as is the next: files for one instruction set must not leave copies of them.
CorrectionView correction_of(const ggml_zipcache_format & f, const uint8_t * correction, int head, bool is_key);

// x [n, head_dim] += the correction of tokens [first, first + n) of one side of a head.
void correct_rows(const ggml_zipcache_format & f, const CorrectionView & view, int64_t first, int64_t n, float * x);

}  // namespace zipcache::format

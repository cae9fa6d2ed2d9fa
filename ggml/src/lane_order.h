#pragma once
// How the 32 lanes of a warp, or of a SIMD-group, share the codes and the parameters of a block in device order
// (cuda_layout.h has the whole segment). Nothing but integers, and nothing included: Metal's compiler reads it too.
//
// A block's places are padded to a multiple of 16. A code of b bits is cut into planes, the widest first with the
// lowest bits: one of 8 bits, else as in format.h. Lane l has place row l / 4 and quarter l % 4. Its registers hold
// four codes, one a byte:
//   K  register r of 16 places: byte j is of channel r % (head_dim / 16) * 16 + l % 4 * 4 + j,
//      place r / (head_dim / 16) * 8 + l / 4
//   V  register r of 16 places: byte j is of channel r * 8 + l / 4, place j / 2 * 8 + l % 4 * 2 + j % 2
// so that 16 places take head_dim / 8 registers. (For mma.m16n8k32 they are halves of A fragments: of 16 places by 32
// channels, and of 16 channels by 32 places.)
// A plane of width w: [n_places / 16, words / v, 32 lanes, v] u32, words = head_dim * w / 64 rounded up, v the largest
// of 4, 2, 1 that divides it. Word i of a lane holds registers i * 8 / w on, the s-th in bits [s w, s w + w) of each
// byte.
// Parameters of channels: channel c stands at c % 16 / 4 * head_dim / 4 + c / 16 * 4 + c % 4. Parameters of tokens:
// place p of n stands at p % 8 / 2 * n / 4 + p / 8 * 2 + p % 2; a block of channels follows another.
namespace zipcache {
namespace lanes {

enum : int {
    kStep = 16,  // places are padded to
    kLanes = 32,
};

// Words of a lane for 16 places.
constexpr int lane_words(int head_dim, int width) {
    return (head_dim * width + 63) / 64;
}

constexpr int vector_words(int words) {
    return words % 4 == 0 ? 4 : words % 2 == 0 ? 2 : 1;
}

// Bytes of 16 places of a plane.
constexpr int step_bytes(int head_dim, int width) {
    return lane_words(head_dim, width) * kLanes * 4;
}

constexpr int channel_index(int channel, int head_dim) {
    return channel % 16 / 4 * (head_dim / 4) + channel / 16 * 4 + channel % 4;
}

constexpr int place_index(int place, int n_places) {
    return place % 8 / 2 * (n_places / 4) + place / 8 * 2 + place % 2;
}

}  // namespace lanes
}  // namespace zipcache

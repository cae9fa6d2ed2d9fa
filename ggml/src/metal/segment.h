#pragma once
// Where the parts of a segment stand, from what the host wrote into Format.
#include "metal/params.h"

namespace zipcache {
namespace gpu {

// Offsets from the start of a segment (cuda_layout.h).
struct SegmentPlaces {
    ulong k_params, v_params, k_shared, v_shared, blocks;
};

inline ulong tag_bytes(device const Format & f, int n_tokens) {
    return (ulong(n_tokens) * f.tag_bits + 7) / 8;
}

inline SegmentPlaces segment_places(device const Format & f, int n_tokens, uint n_places) {
    SegmentPlaces at;
    at.k_params = aligned(f.tags + f.n_orders * tag_bytes(f, n_tokens));
    at.v_params = aligned(at.k_params + ulong(f.n_kv_heads) * f.k.n_sets * f.k.set_bytes);
    at.k_shared = aligned(at.v_params + ulong(f.n_kv_heads) * f.v.n_sets * f.v.set_bytes);
    at.v_shared = aligned(at.k_shared + (f.k.spans_heads ? ulong(n_places) * 4 : 0));
    at.blocks = aligned(at.v_shared + (f.v.spans_heads ? ulong(n_places) * 4 : 0));
    return at;
}

// A head's table: counts [n_tiers], offsets [n_tiers], HeadUnits.
inline ulong head_table(device const Format & f, int head) {
    return ulong(f.heads) + ulong(head) * f.head_bytes;
}

inline bool evicts(device const Format & f, int tier) {
    return f.k.bits[tier] == 0;
}

inline int steps_of(int n) {
    return (n + kStep - 1) / kStep;
}

inline device const BlockPlaces & block_places(device const Format & f, int tier, int n) {
    return f.block[tier][steps_of(n) - 1];
}

inline ulong tier_bytes(device const Format & f, int tier, uint count) {
    if (evicts(f, tier)) {
        return 0;
    }
    const int rest = int(count % f.group);
    return ulong(count / f.group) * block_places(f, tier, f.group).size + (rest ? block_places(f, tier, rest).size : 0);
}

inline uint tier_places(device const Format & f, int tier, uint count) {
    return evicts(f, tier) ? 0 : (count / f.group * steps_of(f.group) + steps_of(int(count % f.group))) * kStep;
}

inline uint tier_blocks(device const Format & f, int tier, uint count) {
    return evicts(f, tier) ? 0 : (count + f.group - 1) / f.group;
}

// A block of a head, found by its number among all of the head's.
struct FoundBlock {
    int tier, n;   // tokens
    int n_places;  // of 16
    uint place;    // its first, in the head
    ulong offset;  // from the first block of its tier
    bool exists;
};

inline FoundBlock find_block(device const Format & f, device const uint * counts, uint number) {
    FoundBlock b;
    b.place = 0;
    b.exists = false;
    for (int t = 0; t < f.n_tiers && !b.exists; ++t) {
        const uint n = tier_blocks(f, t, counts[t]);
        if (number >= n) {
            number -= n;
            b.place += tier_places(f, t, counts[t]);
            continue;
        }
        b.tier = t;
        b.n = int(min(uint(f.group), counts[t] - number * f.group));
        b.n_places = steps_of(b.n) * kStep;
        b.place += number * steps_of(f.group) * kStep;
        b.offset = ulong(number) * block_places(f, t, f.group).size;
        b.exists = true;
    }
    return b;
}

// Where one side of a block lies, as offsets from the start of its segment.
struct SidePlaces {
    ulong codes, params;
    int n;  // entries of `params`
};

// offset: of the block.
inline SidePlaces side_places(device const Format & f, thread const SegmentPlaces & at, int head,
                              thread const FoundBlock & b, ulong offset, bool key) {
    device const BlockPlaces & own = block_places(f, b.tier, b.n);
    device const Side & side = key ? f.k : f.v;
    SidePlaces s;
    s.codes = offset + (key ? 0 : own.v_codes);
    s.params = offset + (key ? own.k_params : own.v_params);
    s.n = side.scope == kScopeToken ? f.head_dim / side.block * b.n_places : f.head_dim;
    if (side.n_sets > 0) {
        s.params = (key ? at.k_params : at.v_params) +
                   (ulong(head) * side.n_sets + (side.n_sets > 1 ? b.tier : 0)) * side.set_bytes;
    } else if (side.spans_heads) {
        s.params = (key ? at.k_shared : at.v_shared) + ulong(b.place) * 4;
    }
    return s;
}

}  // namespace gpu
}  // namespace zipcache

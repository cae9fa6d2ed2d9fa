#pragma once
// The first half of a unit: logits of its keys, to base 2.
#include "attend_kv_shape.cuh"

namespace zipcache::cuda {

// The query heads of a pass.
struct Queries {
    const float * q;       // [n_rows, head_dim] f32, global
    int n_rows;            // heads; 1 to kRows
    float scale;           // multiplies q . k, to base 2
    const float * stored;  // shared [head_dim / 16, 32 lanes, 4] f32: in the space `home`, times scale
    Space home;
};

// A query as the A fragments of integers, and what its codes' sums are worth. Lanes beyond the last head hold zeros.
template <int D>
struct KeyQuery {
    uint32_t key = ~0u;  // what it was made for
    uint32_t high[Shape<D>::kSteps], low[Shape<D>::kSteps];
    float unit = 0;                              // of the integers
    float offset = 0;                            // channels' parameters: added to each logit
    float sums[D / 32 > 0 ? (D + 31) / 32 : 1];  // tokens' parameters: of the query, by 32 channels
};

// The lane's channels 16 i + 4 quarter + j of its head's query, in the space of a segment, at [4 i + j].
template <int D>
__device__ __forceinline__ void stored_query(const Queries & queries, const Space & space, int lane,
                                             float (&x)[Shape<D>::kQuarter]) {
    if (queries.stored && space.divisor == queries.home.divisor && space.rotate == queries.home.rotate) {
#pragma unroll
        for (int i = 0; i < Shape<D>::kSteps; ++i) {
            const float4 v = reinterpret_cast<const float4 *>(queries.stored)[i * kLanes + lane];
            x[4 * i] = v.x;
            x[4 * i + 1] = v.y;
            x[4 * i + 2] = v.z;
            x[4 * i + 3] = v.w;
        }
        return;
    }
    const int row = lane / 4, quarter = lane % 4;
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const int channel = 16 * i + 4 * quarter;
        float4 v = {0, 0, 0, 0}, d = {1, 1, 1, 1};
        if (row < queries.n_rows) {
            v = *reinterpret_cast<const float4 *>(queries.q + row * D + channel);
        }
        if (space.divisor) {
            d = *reinterpret_cast<const float4 *>(space.divisor + channel);
        }
        x[4 * i] = v.x * queries.scale * d.x;
        x[4 * i + 1] = v.y * queries.scale * d.y;
        x[4 * i + 2] = v.z * queries.scale * d.z;
        x[4 * i + 3] = v.w * queries.scale * d.w;
    }
    if (space.rotate) {
        quad_hadamard<2>(x, D & -D, rsqrtf(float(D & -D)));
    }
}

template <int D>
__device__ __forceinline__ float largest(const float (&x)[Shape<D>::kQuarter]) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < Shape<D>::kQuarter; ++i) {
        most = fmaxf(most, fabsf(x[i]));
    }
    return quad_max(most);
}

// sum of the integers of 16 channels
__device__ __forceinline__ int sum_of(uint32_t high, uint32_t low) {
    return __dp4a(int(high), 0x01010101, 0) * 256 + __dp4a(int(low), 0x01010101, 0);
}

// Channels' parameters folded into the query. params: this lane's begin with its quarter's.
template <int D>
__device__ __forceinline__ void fold_channels(const HeadRecord & r, const uint8_t * params, int tier, int bits,
                                              int lane, float (&x)[Shape<D>::kQuarter], KeyQuery<D> & a) {
    const int quarter = lane % 4;
    const float shrink = r.k_shrink[tier], levels = float((1 << bits) - 1);
    float offset = 0;
    if (r.k_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
        const auto * pairs = reinterpret_cast<const __half2 *>(params) + quarter * Shape<D>::kQuarter;
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; ++i) {
            const float2 p = __half22float2(pairs[i]);
            offset += x[i] * p.y;
            x[i] *= p.x;
        }
        const float most = largest<D>(x), up = most > 0 ? kMost / most : 0;
#pragma unroll
        for (int i = 0; i < Shape<D>::kSteps; ++i) {
            const float v[4] = {fmaf(x[4 * i], up, kMagic), fmaf(x[4 * i + 1], up, kMagic),
                                fmaf(x[4 * i + 2], up, kMagic), fmaf(x[4 * i + 3], up, kMagic)};
            pack_bytes(v, a.high[i], a.low[i]);
        }
        a.unit = most / kMost;
        a.offset = quad_sum(offset);
        return;
    }
    const float most = largest<D>(x), up = most > 0 ? kMost / kTop / most : 0;
    const auto * ranges = reinterpret_cast<const uint32_t *>(params + quarter * Shape<D>::kQuarter);
    const auto * middles = reinterpret_cast<const uint32_t *>(params + D + quarter * Shape<D>::kQuarter);
    int sum = 0;
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const uint32_t range = ranges[i], middle = middles[i] ^ 0x80808080u;
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            // 32768 + 128 + the middle: its byte in the mantissa of a float
            offset = fmaf(x[4 * i + j], __uint_as_float(__byte_perm(middle, 0x47000000u, 0x7604 | j << 4)) - 32896.0f,
                          offset);
            v[j] = fmaf(x[4 * i + j] * up, range_at(range, j), kMagic);
        }
        pack_bytes(v, a.high[i], a.low[i]);
        sum += sum_of(a.high[i], a.low[i]);
    }
    const float back = most * (kTop / kMost) * r.units.k_range;  // an integer times a code, but for the tier
    a.unit = back * shrink / levels;
    a.offset = quad_sum(offset) * r.units.k_mid - shrink / 2 * back * float(quad_sum(sum));
}

// The query alone, for tokens' parameters.
template <int D>
__device__ __forceinline__ void fold_nothing(float (&x)[Shape<D>::kQuarter], KeyQuery<D> & a) {
    const float most = largest<D>(x), up = most > 0 ? kMost / most : 0;
    a.unit = most / kMost;
    a.offset = 0;
#pragma unroll
    for (int i = 0; i < (D + 31) / 32; ++i) {
        a.sums[i] = 0;
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const float v[4] = {fmaf(x[4 * i], up, kMagic), fmaf(x[4 * i + 1], up, kMagic), fmaf(x[4 * i + 2], up, kMagic),
                            fmaf(x[4 * i + 3], up, kMagic)};
        pack_bytes(v, a.high[i], a.low[i]);
        a.sums[i / 2] += float(quad_sum(sum_of(a.high[i], a.low[i]))) * a.unit;
    }
}

// Makes the query for a block, unless the last one serves.
template <int D>
__device__ __forceinline__ void prepare_query(const Queries & queries, const HeadRecord & r, const BlockRef & ref,
                                              const uint8_t * part, int lane, KeyQuery<D> & a) {
    const bool by_token = r.k_scope == GGML_ZIPCACHE_SCOPE_TOKEN, by_group = r.k_scope == GGML_ZIPCACHE_SCOPE_GROUP;
    const uint32_t key = uint32_t(ref.segment) << 8 | (by_token ? 0xFFu : ref.tier);
    if (key == a.key && !by_group) {
        return;
    }
    a.key = key;
    float x[Shape<D>::kQuarter];
    stored_query<D>(queries, r.k, lane, x);
    if (by_token) {
        fold_nothing<D>(x, a);
        return;
    }
    const int set = r.k_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR ? ref.tier * D * 4 : 0;
    fold_channels<D>(r, by_group ? part + ref.k_params * kAlign : r.k_params + set, ref.tier, ref.k_bits, lane, x, a);
}

// Integer products of 16 places with the query: c [tile of 8 places].
template <int D>
__device__ __forceinline__ void multiply_step(const KeyQuery<D> & a, const uint32_t (&b)[Shape<D>::kRegs],
                                              int (&c)[2][4]) {
    constexpr int kSteps = Shape<D>::kSteps;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
        for (int i = 0; i + 1 < kSteps; i += 2) {
            mma_k32(c[tile], a.high[i], a.low[i], a.high[i + 1], a.low[i + 1], b[tile * kSteps + i],
                    b[tile * kSteps + i + 1]);
        }
        if constexpr (kSteps % 2 == 1) {
            mma_k16(c[tile], a.high[kSteps - 1], a.low[kSteps - 1], b[tile * kSteps + kSteps - 1]);
        }
    }
}

// s [16]: the logit of place 8 (i / 2) + 2 quarter + i % 2 at [i]; of places beyond the block anything.
template <int D>
__device__ __forceinline__ void channel_logits(const KeyQuery<D> & a, const BlockRef & ref, const uint8_t * part,
                                               int n_steps, int lane, float (&s)[16]) {
    with_bits(ref.k_bits, [&](auto bits) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            if (step < n_steps) {
                uint32_t b[Shape<D>::kRegs];
                unpack<decltype(bits)::value, D>(part, n_steps, step, lane, 0, b);
                int c[2][4] = {};
                multiply_step<D>(a, b, c);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    s[step * 4 + i] = fmaf(whole(c[i / 2][i % 2], c[i / 2][i % 2 + 2]), a.unit, a.offset);
                }
            }
        }
    });
}

// Calls body(number, products) for each 32 channels of a tile.
template <int D, class Body>
__device__ __forceinline__ void for_channels(const KeyQuery<D> & a, const uint32_t (&b)[Shape<D>::kRegs], int tile,
                                             Body && body) {
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; i += 2) {
        int c[4] = {};
        const int at = tile * Shape<D>::kSteps + i;
        mma_k32(c, a.high[i], a.low[i], a.high[i + 1], a.low[i + 1], b[at], b[at + 1]);
        body(i / 2, c);
    }
}

// The same where tokens have parameters of their own, by 32 or more channels.
template <int D>
__device__ __forceinline__ void token_logits(const KeyQuery<D> & a, const HeadRecord & r, const BlockRef & ref,
                                             const uint8_t * part, int n_steps, int lane, float (&s)[16]) {
    const int n_places = n_steps * kStep, own = (lane % 4) * (n_places / 4);
    const bool whole_row = r.k_block >= D;
    const int n = whole_row ? n_places : D / r.k_block * n_places;
    const uint8_t * data =
        r.k_shared_heads ? reinterpret_cast<const uint8_t *>(r.k_shared + ref.place) : part + ref.k_params * kAlign;
    const TokenParams params = token_params(data, r.k_kind, n, r.units.k_range, r.k_shrink[ref.tier], ref.k_bits);
    with_bits(ref.k_bits, [&](auto bits) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            if (step < n_steps) {
                uint32_t b[Shape<D>::kRegs];
                unpack<decltype(bits)::value, D>(part, n_steps, step, lane, 0, b);
                if (whole_row) {
                    float sum = 0;
#pragma unroll
                    for (int i = 0; i < (D + 31) / 32; ++i) {
                        sum += a.sums[i];
                    }
                    int c[2][4] = {};
                    multiply_step<D>(a, b, c);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const Param p = params.at(own + step * 4 + i);
                        s[step * 4 + i] =
                            fmaf(whole(c[i / 2][i % 2], c[i / 2][i % 2 + 2]) * a.unit, p.scale, p.min * sum);
                    }
                } else if constexpr (D % 32 == 0) {
#pragma unroll
                    for (int tile = 0; tile < 2; ++tile) {
                        float sum[2] = {};
                        for_channels<D>(a, b, tile, [&](int block, const int (&c)[4]) {
#pragma unroll
                            for (int e = 0; e < 2; ++e) {
                                const Param p =
                                    params.at(block * 32 / r.k_block * n_places + own + step * 4 + tile * 2 + e);
                                sum[e] += fmaf(whole(c[e], c[e + 2]) * a.unit, p.scale, p.min * a.sums[block]);
                            }
                        });
                        s[step * 4 + tile * 2] = sum[0];
                        s[step * 4 + tile * 2 + 1] = sum[1];
                    }
                }
            }
        }
    });
}

// What is padding or not seen has the logit -inf.
__device__ __forceinline__ void hide(const HeadRecord & r, const BlockRef & ref, int lane, float (&s)[16]) {
    if (ref.n == format::kGroup && !r.position) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int place = i / 2 * 8 + lane % 4 * 2 + i % 2;
        bool seen = place < ref.n;
        if (seen && r.position) {
            const uint32_t token = r.position[ref.place + place];
            seen = token >= r.first_seen && token < r.last_seen;
        }
        s[i] = seen ? s[i] : -INFINITY;
    }
}

}  // namespace zipcache::cuda

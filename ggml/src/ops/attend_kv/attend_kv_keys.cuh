#pragma once
// The first half of a unit: logits of its keys, to base 2.
#include "attend_kv_shape.cuh"

namespace zipcache::cuda {

// The query heads of a pass.
struct Queries {
    const float * q;  // [n_rows, head_dim] f32, global
    int n_rows;       // heads; 1 to kRows
    float scale;      // multiplies q . k, to base 2
    uint32_t stored;  // offset in shared memory: [head_dim / 16, 32 lanes, 4] f32, in the space `home`, times scale;
                      // each head's largest is kShare
    Space home;
    float unit[kRows];  // of what is stored
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

// The lane's channels 16 i + 4 quarter + j of its head's query, times scale and divisor, at x [4 i + j].
template <int D>
__device__ __forceinline__ void load_query(const Queries & queries, const float * divisor, int lane, float * x) {
    const int row = lane / 4;
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const int channel = 16 * i + 4 * (lane % 4);
        float4 v = {0, 0, 0, 0}, d = {1, 1, 1, 1};
        if (row < queries.n_rows) {
            v = *reinterpret_cast<const float4 *>(queries.q + row * D + channel);
        }
        if (divisor) {
            d = *reinterpret_cast<const float4 *>(divisor + channel);
        }
        x[4 * i] = v.x * queries.scale * d.x;
        x[4 * i + 1] = v.y * queries.scale * d.y;
        x[4 * i + 2] = v.z * queries.scale * d.z;
        x[4 * i + 3] = v.w * queries.scale * d.w;
    }
}

// For a segment whose space is not the others'.
template <int D>
__device__ __noinline__ void transform_query(const Queries & queries, Space space, int lane, float * to) {
    float x[Shape<D>::kQuarter];
    load_query<D>(queries, space.divisor, lane, x);
    if (space.rotate) {
        quad_hadamard<2>(x, D & -D, rsqrtf(float(D & -D)));
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kQuarter; ++i) {
        to[i] = x[i];
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

// x: the lane's channels of its head's query in the space of a segment, the head's largest at kShare. Returns their
// unit. Any: the space may be another than `home`.
template <int D, bool Any>
__device__ __forceinline__ float stored_query(const Queries & queries, const Space & space, int lane,
                                              float (&x)[Shape<D>::kQuarter]) {
    if constexpr (Any) {
        if (space.divisor != queries.home.divisor || space.rotate != queries.home.rotate) {
            float own[Shape<D>::kQuarter];
            transform_query<D>(queries, space, lane, own);
#pragma unroll
            for (int i = 0; i < Shape<D>::kQuarter; ++i) {
                x[i] = own[i];
            }
            const float most = largest<D>(x), up = most > 0 ? kShare / most : 0;
#pragma unroll
            for (int i = 0; i < Shape<D>::kQuarter; ++i) {
                x[i] *= up;
            }
            return most / kShare;
        }
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const float4 v = in_shared<float4>(queries.stored + (i * kLanes + lane) * 16);
        x[4 * i] = v.x;
        x[4 * i + 1] = v.y;
        x[4 * i + 2] = v.z;
        x[4 * i + 3] = v.w;
    }
    return queries.unit[lane / 4];
}

// High and low bytes of 4 channels of x as integers, the largest kMost. Any: as in stored_query(), whose x it is.
template <int D, bool Any>
__device__ __forceinline__ uint2 plain_integers(const Queries & queries, const float (&x)[Shape<D>::kQuarter], int step,
                                                int lane) {
    if constexpr (Any) {
        constexpr float up = kMost / kShare;
        const float v[4] = {fmaf(x[4 * step], up, kMagic), fmaf(x[4 * step + 1], up, kMagic),
                            fmaf(x[4 * step + 2], up, kMagic), fmaf(x[4 * step + 3], up, kMagic)};
        uint2 packed;
        pack_bytes(v, packed.x, packed.y);
        return packed;
    }
    return in_shared<uint2>(queries.stored + Shape<D>::kIntegers + (step * kLanes + lane) * sizeof(uint2));
}

// sum of the integers of 16 channels
__device__ __forceinline__ int sum_of(uint32_t high, uint32_t low) {
    return __dp4a(int(high), 0x01010101, 0) * 256 + __dp4a(int(low), 0x01010101, 0);
}

// A quarter's bytes of [head_dim] parameters at an offset in shared memory, those of 4 channels in a word.
template <int D>
__device__ __forceinline__ void load_quarter(uint32_t params, int quarter, uint32_t (&words)[Shape<D>::kSteps]) {
    constexpr int kSteps = Shape<D>::kSteps;
    if constexpr (kSteps % 4 == 0) {
#pragma unroll
        for (int i = 0; i < kSteps; i += 4) {
            const auto & v = in_shared<uint4>(params + quarter * Shape<D>::kQuarter + 4 * i);
            words[i] = v.x;
            words[i + 1] = v.y;
            words[i + 2] = v.z;
            words[i + 3] = v.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
            words[i] = in_shared<uint32_t>(params + quarter * Shape<D>::kQuarter + 4 * i);
        }
    }
}

// Channels' parameters, at an offset in shared memory, folded into the query.
template <int D, bool Any>
__device__ __forceinline__ void fold_channels(const Queries & queries, const HeadRecord & r, uint32_t params, int tier,
                                              int bits, int lane, float unit, float (&x)[Shape<D>::kQuarter],
                                              KeyQuery<D> & a) {
    const int quarter = lane % 4;
    const float shrink = r.k_shrink[tier], levels = float((1 << bits) - 1);
    float offset = 0;
    if (r.k_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; i += 4) {
            const auto & v = in_shared<uint4>(params + (quarter * Shape<D>::kQuarter + i) * 4);
            const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const float2 p = __half22float2(*reinterpret_cast<const __half2 *>(&pairs[j]));
                offset += x[i + j] * p.y;
                x[i + j] *= p.x;
            }
        }
        const float most = largest<D>(x), up = most > 0 ? kMost / most : 0;
#pragma unroll
        for (int i = 0; i < Shape<D>::kSteps; ++i) {
            const float v[4] = {fmaf(x[4 * i], up, kMagic), fmaf(x[4 * i + 1], up, kMagic),
                                fmaf(x[4 * i + 2], up, kMagic), fmaf(x[4 * i + 3], up, kMagic)};
            pack_bytes(v, a.high[i], a.low[i]);
        }
        a.unit = most / kMost * unit;
        a.offset = quad_sum(offset) * unit;
        return;
    }
    uint32_t words[Shape<D>::kSteps];
    load_quarter<D>(params, quarter, words);
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        float v[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            v[j] = fmaf(x[4 * i + j], above_range(words[i], j), kMagic);  // the 1 too much is half an integer at most
        }
        pack_bytes(v, a.high[i], a.low[i]);
    }
    // sums over channels by the multiplication that the codes take, in columns: of the query's integers times the
    // middles plus 128, of the integers, and of those above
    const int column = lane / 4;
    load_quarter<D>(params + D, quarter, words);
    int c[4] = {}, d[4] = {};
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; i += 2) {
        constexpr uint32_t kOnes = 0x01010101u;
        const bool pair = i + 1 < Shape<D>::kSteps;
        const uint32_t ones = column == 1 ? kOnes : 0;
        const uint32_t b0 = column == 0 ? words[i] ^ 0x80808080u : ones;
        const uint2 q0 = plain_integers<D, Any>(queries, x, i, lane);
        if (pair) {
            const int next = pair ? i + 1 : i;
            const uint32_t b1 = column == 0 ? words[next] ^ 0x80808080u : ones;
            const uint2 q1 = plain_integers<D, Any>(queries, x, next, lane);
            mma_k32(c, q0.x, q0.y, q1.x, q1.y, b0, b1);
            mma_k32(d, a.high[i], a.low[i], a.high[next], a.low[next], ones, ones);
        } else {
            mma_k16(c, q0.x, q0.y, b0);
            mma_k16(d, a.high[i], a.low[i], ones);
        }
    }
    const float back = unit * r.units.k_range;  // an integer times a code, but for the tier
    a.unit = back * shrink / levels;
    const float middles = float(whole_int(c[0], c[2]) - 128 * whole_int(c[1], c[3])) * (kShare / kMost);
    const float own = middles * unit * r.units.k_mid - shrink / 2 * back * whole(d[1], d[3]);
    a.offset = __shfl_sync(~0u, own, lane & ~3);
}

// The query alone, for tokens' parameters.
template <int D>
__device__ __forceinline__ void fold_nothing(float unit, float (&x)[Shape<D>::kQuarter], KeyQuery<D> & a) {
    constexpr float up = kMost / kShare;
    a.unit = unit / up;
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
template <int D, bool Any>
__device__ __forceinline__ void prepare_query(const Queries & queries, const HeadRecord & r, const Ref & ref,
                                              uint32_t slot, int lane, KeyQuery<D> & a) {
    const bool by_token = Any && r.k_scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    const bool by_group = r.k_scope == GGML_ZIPCACHE_SCOPE_GROUP;
    const uint32_t key = ref.segment() << 8 | uint32_t(by_token ? 0xFF : ref.tier());
    if (key == a.key && !by_group) {
        return;
    }
    a.key = key;
    float x[Shape<D>::kQuarter];
    const float unit = stored_query<D, Any>(queries, r.k, lane, x);
    if (by_token) {
        fold_nothing<D>(unit, x, a);
        return;
    }
    fold_channels<D, Any>(queries, r, slot + ref.k_params<D>(), ref.tier(), ref.k_bits(), lane, unit, x, a);
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
            (i == 0 ? mma_k32_first : mma_k32)(c[tile], a.high[i], a.low[i], a.high[i + 1], a.low[i + 1],
                                               b[tile * kSteps + i], b[tile * kSteps + i + 1]);
        }
        if constexpr (kSteps % 2 == 1) {
            mma_k16(c[tile], a.high[kSteps - 1], a.low[kSteps - 1], b[tile * kSteps + kSteps - 1]);
        }
    }
}

// Sums over channels of the query times parameters of tokens: of two tiles' places 2 quarter and + 1.
template <int D>
__device__ __forceinline__ void weigh_tokens(const KeyQuery<D> & a, const HeadRecord & r, const Ref & ref,
                                             uint32_t slot, int n_places, int first,
                                             const uint32_t (&b)[Shape<D>::kRegs], float * s) {
    const int block = r.k_block;
    const uint8_t * data = r.k_shared_heads ? reinterpret_cast<const uint8_t *>(r.k_shared + ref.place())
                                            : shared_bytes() + slot + ref.k_params<D>();
    const TokenParams params = token_params(data, r.k_kind, block >= D ? n_places : D / block * n_places,
                                            r.units.k_range, r.k_shrink[ref.tier()], ref.k_bits());
    if (block >= D) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < (D + 31) / 32; ++i) {
            sum += a.sums[i];
        }
        int c[2][4];
        multiply_step<D>(a, b, c);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const Param p = params.at(first + i);
            s[i] = fmaf(whole(c[i / 2][i % 2], c[i / 2][i % 2 + 2]) * a.unit, p.scale, p.min * sum);
        }
    } else if constexpr (D % 32 == 0) {
#pragma unroll
        for (int i = 0; i < Shape<D>::kSteps; i += 2) {
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                int c[4] = {};
                const int at = tile * Shape<D>::kSteps + i;
                mma_k32(c, a.high[i], a.low[i], a.high[i + 1], a.low[i + 1], b[at], b[at + 1]);
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const Param p = params.at(i * 16 / block * n_places + first + tile * 2 + e);
                    const float own = fmaf(whole(c[e], c[e + 2]) * a.unit, p.scale, p.min * a.sums[i / 2]);
                    s[tile * 2 + e] = i == 0 ? own : s[tile * 2 + e] + own;
                }
            }
        }
    }
}

// s [16]: the logit of place 8 (i / 2) + 2 quarter + i % 2 at [i]; anything where the block has no token.
template <int D, bool Any>
__device__ __forceinline__ void key_logits(const KeyQuery<D> & a, const HeadRecord & r, const Ref & ref, uint32_t slot,
                                           int lane, float (&s)[16]) {
    const bool by_token = Any && r.k_scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    const int n_steps = ref.n_steps(), n_places = n_steps * kStep;
    with_bits(ref.k_bits(), [&](auto bits) {
        constexpr int kBits = decltype(bits)::value;
        if (by_token) {
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                float * to = s + 4 * step;
                if (step >= n_steps) {
                    to[0] = to[1] = to[2] = to[3] = -INFINITY;
                    continue;
                }
                uint32_t b[Shape<D>::kRegs];
                unpack<kBits, D>(slot, n_steps, step, lane, 0, b);
                weigh_tokens<D>(a, r, ref, slot, n_places, (lane % 4) * (n_places / 4) + step * 4, b, to);
            }
            return;
        }
        // two steps at once, for a multiplication waits for the one before; an odd number of steps has one too many, of
        // what lies in the slot: hide() takes it away
#pragma unroll
        for (int step = 0; step < 4; step += 2) {
            if (step >= n_steps) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    s[4 * step + i] = -INFINITY;
                }
                continue;
            }
            uint32_t b[2][Shape<D>::kRegs];
            int c[2][2][4];
            unpack<kBits, D>(slot, n_steps, step, lane, 0, b[0]);
            unpack<kBits, D>(slot, n_steps, step + 1, lane, 0, b[1]);
            multiply_step<D>(a, b[0], c[0]);
            multiply_step<D>(a, b[1], c[1]);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const auto & own = c[i / 4][i % 4 / 2];
                s[4 * step + i] = fmaf(whole(own[i % 2], own[i % 2 + 2]), a.unit, a.offset);
            }
        }
    });
}

// What is padding or not seen has the logit -inf.
__device__ __forceinline__ void hide(const HeadRecord & r, const Ref & ref, int lane, float (&s)[16]) {
    if (ref.n() == format::kGroup && !r.position) {
        return;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const int place = i / 2 * 8 + lane % 4 * 2 + i % 2;
        bool seen = place < ref.n();
        if (seen && r.position) {
            const uint32_t token = r.position[ref.place() + place];
            seen = token >= r.first_seen && token < r.last_seen;
        }
        s[i] = seen ? s[i] : -INFINITY;
    }
}

}  // namespace zipcache::cuda

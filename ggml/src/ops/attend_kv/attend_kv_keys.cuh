#pragma once
// The first half of a unit: logits of its keys, to base 2.
#include "attend_kv_shape.cuh"

namespace zipcache::cuda {

// The query heads of a pass.
struct Queries {
    const float * q;  // [n_rows, head_dim] f32, global
    int n_rows;       // heads; 1 to kRows
    float scale;      // multiplies q . k, to base 2
    Space home;       // in which they are stored
};

// As a warp finds them where they are stored.
struct StoredQueries {
    const Queries & of;
    uint32_t stored;  // offset in shared memory, see Shape
};

// The queries of a pass as B fragments of integers, and, of the heads of C, what products with codes are worth.
template <int D, int T>
struct KeyQuery {
    uint32_t key = ~0u;  // what it was made for
    uint32_t q[T][Shape<D>::kSteps];
    float unit[T];                 // of the integers
    float offset[T];               // channels' parameters: added to each logit
    float sums[T][(D + 31) / 32];  // tokens' parameters: of the query, by 32 channels
};

// A lane's channels 16 step + 4 (lane % 4) to + 3 of a head's query, times scale.
template <int D>
__device__ __forceinline__ float4 load_query(const Queries & queries, int head, int step, int lane) {
    float4 v = {0, 0, 0, 0};
    if (head < queries.n_rows) {
        v = *reinterpret_cast<const float4 *>(queries.q + head * D + 16 * step + 4 * (lane % 4));
    }
    return {v.x * queries.scale, v.y * queries.scale, v.z * queries.scale, v.w * queries.scale};
}

// For a segment whose space is not the others'.
template <int D>
__device__ __noinline__ void transform_query(const Queries & queries, Space space, int head, int lane, float * to) {
    float x[Shape<D>::kQuarter];
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const float4 v = load_query<D>(queries, head, i, lane);
        float4 d = {1, 1, 1, 1};
        if (space.divisor) {
            d = *reinterpret_cast<const float4 *>(space.divisor + 16 * i + 4 * (lane % 4));
        }
        x[4 * i] = v.x * d.x;
        x[4 * i + 1] = v.y * d.y;
        x[4 * i + 2] = v.z * d.z;
        x[4 * i + 3] = v.w * d.w;
    }
    if (space.rotate) {
        query_hadamard(x, D & -D);
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

// x: the lane's channels of the head that it feeds in the space of a segment, the head's largest at kShare. Returns the
// unit of C's head. Any: the space may be another than `home`.
template <int D, bool Any>
__device__ __forceinline__ float stored_query(const StoredQueries & queries, const Space & space, int tile, int lane,
                                              float (&x)[Shape<D>::kQuarter]) {
    const int head = fed_head(tile, lane);
    if constexpr (Any) {
        if (space.divisor != queries.of.home.divisor || space.rotate != queries.of.home.rotate) {
            float own[Shape<D>::kQuarter];
            transform_query<D>(queries.of, space, head, lane, own);
#pragma unroll
            for (int i = 0; i < Shape<D>::kQuarter; ++i) {
                x[i] = own[i];
            }
            const float most = largest<D>(x), up = most > 0 ? kShare / most : 0;
#pragma unroll
            for (int i = 0; i < Shape<D>::kQuarter; ++i) {
                x[i] *= up;
            }
            return from_feeder(most / kShare, lane);
        }
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const float4 v = in_shared<float4>(queries.stored + (i * kLanes + head * 4 + lane % 4) * 16);
        x[4 * i] = v.x;
        x[4 * i + 1] = v.y;
        x[4 * i + 2] = v.z;
        x[4 * i + 3] = v.w;
    }
    return in_shared<float>(queries.stored + Shape<D>::kUnits + (kTile * tile + lane % 4) * 4);
}

// What the lane feeds of 4 channels of x as integers, the largest kMost. Any: as in stored_query(), whose x it is.
template <int D, bool Any>
__device__ __forceinline__ uint32_t plain_integers(const StoredQueries & queries, const float (&x)[Shape<D>::kQuarter],
                                                   const Feed & feed, int tile, int step, int lane) {
    if constexpr (Any) {
        constexpr float up = kMost / kShare;
        const float v[4] = {fmaf(x[4 * step], up, kMagic), fmaf(x[4 * step + 1], up, kMagic),
                            fmaf(x[4 * step + 2], up, kMagic), fmaf(x[4 * step + 3], up, kMagic)};
        return feed.bytes(v);
    }
    const int quad = step * kLanes + fed_head(tile, lane) * 4 + lane % 4;
    return in_shared<uint32_t>(queries.stored + Shape<D>::kIntegers + quad * 8 + (feed.low ? 4 : 0));
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

// Of two steps' words of a column each of the two lanes that feed a head's columns makes one, for both: v, of the first
// step or, where low bytes are fed, of the second.
__device__ __forceinline__ void share_words(const Feed & feed, const float (&v)[4], uint32_t & first,
                                            uint32_t & second) {
    const uint32_t mine = feed.bytes(v);
    const uint32_t other = __shfl_xor_sync(~0u, feed.others_bytes(v), 4);
    first = feed.low ? other : mine;
    second = feed.low ? mine : other;
}

// The lane's channels of the one or the other step of the head that it feeds. Any: as in stored_query(), whose x it is.
template <int D, bool Any>
__device__ __forceinline__ float4 stored_step(const StoredQueries & queries, const float (&x)[Shape<D>::kQuarter],
                                              int tile, int lane, bool second, int i, int j) {
    if constexpr (Any) {
        return {second ? x[4 * j] : x[4 * i], second ? x[4 * j + 1] : x[4 * i + 1],
                second ? x[4 * j + 2] : x[4 * i + 2], second ? x[4 * j + 3] : x[4 * i + 3]};
    }
    return in_shared<float4>(queries.stored + ((second ? j : i) * kLanes + fed_head(tile, lane) * 4 + lane % 4) * 16);
}

// A quarter's ranges, in `words`, folded into the query.
template <int D, bool Any>
__device__ __forceinline__ void fold_ranges(const StoredQueries & queries, const uint32_t (&words)[Shape<D>::kSteps],
                                            const float (&stored)[Shape<D>::kQuarter], int tile, int lane,
                                            uint32_t (&q)[Shape<D>::kSteps]) {
    constexpr int kSteps = Shape<D>::kSteps;
    const Feed feed(lane);
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) {
        const int next = i + 1 < kSteps ? i + 1 : i;
        const float4 x = stored_step<D, Any>(queries, stored, tile, lane, feed.low, i, next);
        const uint32_t word = feed.low ? words[next] : words[i];
        // the 1 too much is half an integer at most
        const float v[4] = {fmaf(x.x, above_range(word, 0), kMagic), fmaf(x.y, above_range(word, 1), kMagic),
                            fmaf(x.z, above_range(word, 2), kMagic), fmaf(x.w, above_range(word, 3), kMagic)};
        if (next > i) {
            share_words(feed, v, q[i], q[next]);
        } else {
            q[i] = feed.bytes(v);
        }
    }
}

// A quarter's f16 pairs, at an offset in shared memory, folded into the query. unit: of what is stored.
template <int D, int T, bool Any>
__device__ __forceinline__ void fold_pairs(const StoredQueries & queries, uint32_t params,
                                           const float (&stored)[Shape<D>::kQuarter], float unit, int tile, int lane,
                                           KeyQuery<D, T> & a) {
    constexpr int kSteps = Shape<D>::kSteps;
    const Feed feed(lane);
    float own[(kSteps + 1) / 2][4], most = 0, offset = 0;
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) {
        const int next = i + 1 < kSteps ? i + 1 : i;
        const auto & v = in_shared<uint4>(params + (lane % 4 * Shape<D>::kQuarter + 4 * (feed.low ? next : i)) * 4);
        const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
        const float4 step = stored_step<D, Any>(queries, stored, tile, lane, feed.low, i, next);
        const float x[4] = {step.x, step.y, step.z, step.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const float2 p = __half22float2(*reinterpret_cast<const __half2 *>(&pairs[j]));
            offset += next > i || !feed.low ? x[j] * p.y : 0;
            own[i / 2][j] = x[j] * p.x;
            most = fmaxf(most, fabsf(own[i / 2][j]));
        }
    }
    most = quad_max(most);
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 4));
    const float up = most > 0 ? __fdividef(kMost, most) : 0;
#pragma unroll
    for (int i = 0; i < kSteps; i += 2) {
        const auto & y = own[i / 2];
        const float v[4] = {fmaf(y[0], up, kMagic), fmaf(y[1], up, kMagic), fmaf(y[2], up, kMagic),
                            fmaf(y[3], up, kMagic)};
        if (i + 1 < kSteps) {
            share_words(feed, v, a.q[tile][i], a.q[tile][i + 1]);
        } else {
            a.q[tile][i] = feed.bytes(v);
        }
    }
    offset = quad_sum(offset);
    offset += __shfl_xor_sync(~0u, offset, 4);
    a.unit[tile] = from_feeder(most, lane) * (1 / kMost) * unit;
    a.offset[tile] = from_feeder(offset, lane) * unit;
}

// Channels' parameters, at an offset in shared memory, folded into the query.
template <int D, int T, bool Any>
__device__ __forceinline__ void fold_channels(const StoredQueries & queries, const HeadRecord & r, uint32_t params,
                                              const Ref & ref, int tile, int lane, KeyQuery<D, T> & a) {
    const Feed feed(lane);
    const int quarter = lane % 4;
    const float shrink = r.k_shrink[ref.tier()], levels = float((1 << ref.k_bits()) - 1);
    float x[Shape<D>::kQuarter], unit;
    if (r.k_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
        unit = stored_query<D, Any>(queries, r.k, tile, lane, x);
        fold_pairs<D, T, Any>(queries, params, x, unit, tile, lane, a);
        return;
    }
    uint32_t words[Shape<D>::kSteps];
    load_quarter<D>(params, quarter, words);
    unit = stored_query<D, Any>(queries, r.k, tile, lane, x);
    fold_ranges<D, Any>(queries, words, x, tile, lane, a.q[tile]);
    // sums over channels by the multiplication that the codes take: c, of the query's integers times the middles plus
    // 128 and of the integers; d, of those above
    constexpr uint32_t kOnes = 0x01010101u, kFlip = 0x80808080u;
    load_quarter<D>(params + D, quarter, words);
    int c[4] = {}, d[4] = {};
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; i += 2) {
        const bool pair = i + 1 < Shape<D>::kSteps;
        const uint32_t q0 = plain_integers<D, Any>(queries, x, feed, tile, i, lane);
        if (pair) {
            const int next = pair ? i + 1 : i;
            const uint32_t q1 = plain_integers<D, Any>(queries, x, feed, tile, next, lane);
            mma_k32(c, words[i] ^ kFlip, kOnes, words[next] ^ kFlip, kOnes, q0, q1);
            mma_k32(d, kOnes, kOnes, kOnes, kOnes, a.q[tile][i], a.q[tile][next]);
        } else {
            mma_k16(c, words[i] ^ kFlip, kOnes, q0);
            mma_k16(d, kOnes, kOnes, a.q[tile][i]);
        }
    }
    const float back = unit * r.units.k_range;  // an integer times a code, but for the tier
    a.unit[tile] = back * __fdividef(shrink, levels);
    const float middles = float(whole_int(c[0], c[1]) - 128 * whole_int(c[2], c[3])) * (kShare / kMost);
    a.offset[tile] = middles * unit * r.units.k_mid - shrink / 2 * back * whole(d[0], d[1]);
}

// The query alone, for tokens' parameters.
template <int D, int T>
__device__ __forceinline__ void fold_nothing(int tile, int lane, float unit, const float (&x)[Shape<D>::kQuarter],
                                             KeyQuery<D, T> & a) {
    constexpr float up = kMost / kShare;
    const Feed feed(lane);
    a.unit[tile] = unit / up;
    a.offset[tile] = 0;
#pragma unroll
    for (int i = 0; i < (D + 31) / 32; ++i) {
        a.sums[tile][i] = 0;
    }
#pragma unroll
    for (int i = 0; i < Shape<D>::kSteps; ++i) {
        const float v[4] = {fmaf(x[4 * i], up, kMagic), fmaf(x[4 * i + 1], up, kMagic), fmaf(x[4 * i + 2], up, kMagic),
                            fmaf(x[4 * i + 3], up, kMagic)};
        a.q[tile][i] = feed.bytes(v);
        const int own = quad_sum(__dp4a(int(a.q[tile][i]), 0x01010101, 0)) * (feed.low ? 1 : 256);
        const int both = own + __shfl_xor_sync(~0u, own, 4);
        a.sums[tile][i / 2] += from_feeder(float(both), lane) * a.unit[tile];
    }
}

// Makes the query for a block, unless the last one serves.
template <int D, int T, bool Any>
__device__ __forceinline__ void prepare_query(const StoredQueries & queries, const HeadRecord & r, const Ref & ref,
                                              uint32_t slot, int lane, KeyQuery<D, T> & a) {
    const bool by_token = Any && r.k_scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    const bool by_group = r.k_scope == GGML_ZIPCACHE_SCOPE_GROUP;
    const uint32_t key = ref.segment() << 8 | uint32_t(by_token ? 0xFF : ref.tier());
    if (key == a.key && !by_group) {
        return;
    }
    a.key = key;
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        if (by_token) {
            float x[Shape<D>::kQuarter];
            const float unit = stored_query<D, Any>(queries, r.k, tile, lane, x);
            fold_nothing<D>(tile, lane, unit, x, a);
        } else {
            fold_channels<D, T, Any>(queries, r, slot + ref.k_params<D>(), ref, tile, lane, a);
        }
        end_of_tile();
    }
}

// Integer products of 16 places with the queries: c [tile].
template <int D, int T>
__device__ __forceinline__ void multiply_step(const KeyQuery<D, T> & a, const uint32_t (&codes)[Shape<D>::kRegs],
                                              int (&c)[T][4]) {
    // a multiplication waits for the one before: where there are few, two chains
    constexpr int kSteps = Shape<D>::kSteps, kChains = T == 1 ? 2 : 1;
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        int sums[kChains][4];
#pragma unroll
        for (int i = 0; i + 1 < kSteps; i += 2) {
            (i / 2 < kChains ? mma_k32_first : mma_k32)(sums[i / 2 % kChains], codes[i], codes[kSteps + i],
                                                        codes[i + 1], codes[kSteps + i + 1], a.q[tile][i],
                                                        a.q[tile][i + 1]);
        }
        if constexpr (kSteps % 2 == 1) {
            mma_k16(sums[0], codes[kSteps - 1], codes[2 * kSteps - 1], a.q[tile][kSteps - 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            c[tile][i] = sums[0][i] + (kChains == 2 ? sums[kChains - 1][i] : 0);
        }
    }
}

// Sums over channels of the queries times parameters of tokens: of places lane / 4 and + 8 of a step. first: where the
// parameters of the first of them are.
template <int D, int T>
__device__ __forceinline__ void weigh_tokens(const KeyQuery<D, T> & a, const HeadRecord & r, const Ref & ref,
                                             uint32_t slot, int n_places, int first, int step,
                                             const uint32_t (&codes)[Shape<D>::kRegs], float (&s)[T][8]) {
    const int block = r.k_block;
    const uint8_t * data = r.k_shared_heads ? reinterpret_cast<const uint8_t *>(r.k_shared + ref.place())
                                            : shared_bytes() + slot + ref.k_params<D>();
    const TokenParams params = token_params(data, r.k_kind, block >= D ? n_places : D / block * n_places,
                                            r.units.k_range, r.k_shrink[ref.tier()], ref.k_bits());
    if (block >= D) {
        int c[T][4];
        multiply_step<D>(a, codes, c);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const Param p = params.at(first + 2 * e);
#pragma unroll
            for (int tile = 0; tile < T; ++tile) {
                float sum = 0;
#pragma unroll
                for (int i = 0; i < (D + 31) / 32; ++i) {
                    sum += a.sums[tile][i];
                }
                s[tile][2 * step + e] =
                    fmaf(whole(c[tile][2 * e], c[tile][2 * e + 1]) * a.unit[tile], p.scale, p.min * sum);
            }
        }
    } else if constexpr (D % 32 == 0) {
        constexpr int kSteps = Shape<D>::kSteps;
#pragma unroll
        for (int i = 0; i < kSteps; i += 2) {
#pragma unroll
            for (int tile = 0; tile < T; ++tile) {
                int c[4];
                mma_k32_first(c, codes[i], codes[kSteps + i], codes[i + 1], codes[kSteps + i + 1], a.q[tile][i],
                              a.q[tile][i + 1]);
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const Param p = params.at(i * 16 / block * n_places + first + 2 * e);
                    const float own =
                        fmaf(whole(c[2 * e], c[2 * e + 1]) * a.unit[tile], p.scale, p.min * a.sums[tile][i / 2]);
                    s[tile][2 * step + e] = i == 0 ? own : s[tile][2 * step + e] + own;
                }
            }
        }
    }
}

// s [tile]: the logit of place 8 i + lane / 4 at [i]; anything where the block has no token.
template <int D, int T, bool Any>
__device__ __forceinline__ void key_logits(const KeyQuery<D, T> & a, const HeadRecord & r, const Ref & ref,
                                           uint32_t slot, int lane, float (&s)[T][8]) {
    const bool by_token = Any && r.k_scope == GGML_ZIPCACHE_SCOPE_TOKEN;
    const int n_steps = ref.n_steps(), n_places = n_steps * kStep;
    with_bits(ref.k_bits(), [&](auto bits) {
        constexpr int kBits = decltype(bits)::value;
        if (by_token) {
#pragma unroll
            for (int step = 0; step < 4; ++step) {
                if (step >= n_steps) {
#pragma unroll
                    for (int tile = 0; tile < T; ++tile) {
                        s[tile][2 * step] = s[tile][2 * step + 1] = -INFINITY;
                    }
                    continue;
                }
                uint32_t codes[Shape<D>::kRegs];
                unpack<kBits, D>(slot, n_steps, step, lane, 0, codes);
                const int first = lane / 8 * (n_places / 4) + step * 4 + lane / 4 % 2;
                weigh_tokens<D>(a, r, ref, slot, n_places, first, step, codes, s);
            }
            return;
        }
        // of one tile two steps at once, for a multiplication waits for the one before; an odd number of steps has one
        // too many, of what lies in the slot: hide() takes it away
        constexpr int kAtOnce = T == 1 ? 2 : 1;
#pragma unroll
        for (int step = 0; step < 4; step += kAtOnce) {
            if (step >= n_steps) {
#pragma unroll
                for (int i = 0; i < 2 * kAtOnce * T; ++i) {
                    s[i / (2 * kAtOnce)][2 * step + i % (2 * kAtOnce)] = -INFINITY;
                }
                continue;
            }
            uint32_t codes[kAtOnce][Shape<D>::kRegs];
            int c[kAtOnce][T][4];
#pragma unroll
            for (int i = 0; i < kAtOnce; ++i) {
                unpack<kBits, D>(slot, n_steps, step + i, lane, 0, codes[i]);
                multiply_step<D>(a, codes[i], c[i]);
            }
#pragma unroll
            for (int i = 0; i < 2 * kAtOnce * T; ++i) {
                const int tile = i / (2 * kAtOnce), at = i % (2 * kAtOnce), e = at % 2;
                const auto & own = c[at / 2][tile];
                s[tile][2 * step + at] = fmaf(whole(own[2 * e], own[2 * e + 1]), a.unit[tile], a.offset[tile]);
            }
        }
    });
}

// Bit i: place 8 i + lane / 4 of a block of n is seen. A call, as copy_rows() is: few units need it, and a jump over
// what does not run waits for instructions.
inline __device__ __noinline__ uint32_t seen_places(const uint16_t * position, uint32_t first_seen, uint32_t last_seen,
                                                    int n, int lane) {
    uint32_t all = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const int place = 8 * i + lane / 4;
        bool seen = place < n;
        if (seen && position) {
            const uint32_t token = position[place];
            seen = token >= first_seen && token < last_seen;
        }
        all |= uint32_t(seen) << i;
    }
    return all;
}

// What is padding or not seen has the logit -inf.
template <int T>
__device__ __forceinline__ void hide(const HeadRecord & r, const Ref & ref, int lane, float (&s)[T][8]) {
    if (ref.n() == format::kGroup && !r.position) {
        return;
    }
    const uint32_t seen =
        seen_places(r.position ? r.position + ref.place() : nullptr, r.first_seen, r.last_seen, ref.n(), lane);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
            s[tile][i] = seen >> i & 1 ? s[tile][i] : -INFINITY;
        }
    }
}

}  // namespace zipcache::cuda

#pragma once
// The second half of a unit: probabilities times its values, added to what the warp has.
#include "attend_kv_shape.cuh"

namespace zipcache::cuda {

// x: channel 8 i + 2 quarter + e at [2 i + e], of one space of stored values, to another. Spaces come by value: a
// struct whose address is taken is kept in memory.
template <int D>
__device__ __noinline__ void change_space(float * x, Space from, Space to, int lane) {
    constexpr int kN = Shape<D>::kQuarter, kSize = D & -D;
    float y[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
        y[i] = x[i];
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {  // out of one, into the other
        if (half == 0 ? from.rotate : to.rotate) {
            quad_hadamard<1>(y, kSize, rsqrtf(float(kSize)));
        }
        if (half == 0) {
#pragma unroll
            for (int i = 0; i < kN; ++i) {
                const int channel = 8 * (i / 2) + lane % 4 * 2 + i % 2;
                y[i] *=
                    __fdividef(from.divisor ? from.divisor[channel] : 1.0f, to.divisor ? to.divisor[channel] : 1.0f);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < kN; ++i) {
        x[i] = y[i];
    }
}

// What a warp has of an item: one query head in each four lanes, channel 8 i + 2 quarter + e at [2 i + e].
template <int D>
struct Sums {
    float out[Shape<D>::kQuarter];  // unnormalized, in `space`
    float offset;                   // to be added to each of them
    float maximum, sum;             // of logits to base 2, or up to 8 less; and of 2^(logit - maximum)
    Space space;

    __device__ __forceinline__ void clear(const Space & home) {
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; ++i) {
            out[i] = 0;
        }
        offset = sum = 0;
        maximum = -INFINITY;
        space = home;
    }

    // Moves to another space of stored values.
    __device__ __forceinline__ void move_to(const Space & to, int lane) {
        if (space.divisor == to.divisor && space.rotate == to.rotate) {
            return;
        }
        float x[Shape<D>::kQuarter];
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; ++i) {
            x[i] = out[i] + offset;
        }
        change_space<D>(x, space, to, lane);
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; ++i) {
            out[i] = x[i];
        }
        offset = 0;
        space = to;
    }
};

// Logits s [N] become weights kShare 2^(s - their maximum), 0 where hidden. Takes their maximum and sum into `sums` and
// returns what the weights are to be multiplied by.
template <int D, int N>
__device__ __forceinline__ float take_weights(float (&s)[N], Sums<D> & sums, float & total) {
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        most = fmaxf(most, s[i]);
    }
    most = quad_max(most);
    // the reference lags behind the maximum, so that sums are seldom scaled
    const float top = most > sums.maximum + 8 ? most : sums.maximum;
    const float safe = top == -INFINITY ? 0 : top;  // nothing seen yet
    const float keep = exp2_fast(sums.maximum - safe), own = exp2_fast(most - safe) * (1 / kShare);
    const float reference = most == -INFINITY ? 0 : most - kLog2Share;
    total = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        s[i] = exp2_fast(s[i] - reference);
        total += s[i];
    }
    total = quad_sum(total);
    if (__any_sync(~0u, keep != 1)) {
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; ++i) {
            sums.out[i] *= keep;
        }
        sums.offset *= keep;
        sums.sum *= keep;
    }
    sums.sum += total * own;
    sums.maximum = top;
    return own;
}

// The weights of 64 places as A fragments of integers: a word for each 16 places.
struct WeightQuery {
    uint32_t high[4], low[4];

    // w [16]: at most kMost
    __device__ __forceinline__ void pack(const float (&w)[16]) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            const float v[4] = {w[4 * step] + kMagic, w[4 * step + 1] + kMagic, w[4 * step + 2] + kMagic,
                                w[4 * step + 3] + kMagic};
            pack_bytes(v, high[step], low[step]);
        }
    }
    __device__ __forceinline__ void multiply(int (&c)[4], const uint32_t (&b)[4]) const {
        mma_k32(c, high[0], low[0], high[1], low[1], b[0], b[1]);
        mma_k32(c, high[2], low[2], high[3], low[3], b[2], b[3]);
    }
};

// Codes of one plane need not be shifted: all of a tile lie at the same bit of their bytes, and what multiplies their
// sums makes up for it.
template <int Bits>
constexpr bool kInPlace = Bits == 1 || Bits == 2 || Bits == 4;

template <int Bits>
constexpr int place_in_byte(int tile) {
    return kInPlace<Bits> ? tile % (8 / Bits) * Bits : 0;
}

// As unpack() has them, times 2^place_in_byte().
template <int Bits, int D, int N>
__device__ __forceinline__ void unpack_in_place(uint32_t codes, int n_steps, int step, int lane, int first,
                                                uint32_t (&regs)[N]) {
    if constexpr (kInPlace<Bits>) {
        uint32_t words[lane_words(D, Bits)];
        load_words<Bits, D>(codes, step, lane, words);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const uint32_t mask = 0x01010101u * ((1u << Bits) - 1);
            regs[i] = words[(first + i) / (8 / Bits)] & mask << place_in_byte<Bits>(first + i);
        }
    } else {
        unpack<Bits, D>(codes, n_steps, step, lane, first, regs);
    }
}

// Integer products of the weights with tiles [first, first + N) of 8 channels. Places that the block has not weigh
// nothing, whatever lies in the slot.
template <int Bits, int D, int N>
__device__ __forceinline__ void multiply_tiles(const WeightQuery & w, uint32_t slot, int n_steps, int lane, int first,
                                               int (&c)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        c[i][0] = c[i][1] = c[i][2] = c[i][3] = 0;
    }
#pragma unroll 1
    for (int pair = 0; 2 * pair < n_steps; ++pair) {
        uint32_t b[2][N];
        unpack_in_place<Bits, D>(slot, n_steps, 2 * pair, lane, first, b[0]);
        unpack_in_place<Bits, D>(slot, n_steps, 2 * pair + 1, lane, first, b[1]);
        // chosen, not indexed: registers have no addresses
        const uint32_t high0 = pair == 0 ? w.high[0] : w.high[2], high1 = pair == 0 ? w.high[1] : w.high[3];
        const uint32_t low0 = pair == 0 ? w.low[0] : w.low[2], low1 = pair == 0 ? w.low[1] : w.low[3];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            mma_k32(c[i], high0, low0, high1, low1, b[0][i], b[1][i]);
        }
    }
}

// Calls use(number of a register of sums, the product, its unit) for each channel of the lane; half of the tiles at a
// time. unit: of the integers' products.
template <int D, class Use>
__device__ __forceinline__ void multiply_values(const WeightQuery & w, float unit, int bits, uint32_t slot, int n_steps,
                                                int lane, Use && use) {
    with_bits(bits, [&](auto n_bits) {
        constexpr int kTiles = Shape<D>::kRegs / 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int c[kTiles][4];
            multiply_tiles<decltype(n_bits)::value, D>(w, slot, n_steps, lane, half * kTiles, c);
#pragma unroll
            for (int i = 0; i < 2 * kTiles; ++i) {
                const int place = place_in_byte<decltype(n_bits)::value>(half * kTiles + i / 2);
                use(2 * half * kTiles + i, whole(c[i / 2][i % 2], c[i / 2][i % 2 + 2]), unit / float(1 << place));
            }
        }
    });
}

// How a block's values are to be read.
struct ValueBlock {
    const HeadRecord & r;
    const Ref & ref;
    uint32_t slot;  // offset in shared memory: codes, then parameters
    int n_steps;    // of 16 places

    __device__ __forceinline__ uint32_t params() const { return slot + ref.v_params() - ref.v_codes(); }
    __device__ __forceinline__ float shrink() const { return r.v_shrink[ref.tier()]; }
    __device__ __forceinline__ float levels() const { return float((1 << ref.v_bits()) - 1); }
};

// The weights of a set of parameters as integers, and what makes values of their products with codes.
struct Weighing {
    WeightQuery query;
    float unit;    // of a product
    float offset;  // of each channel
};

// Sums of the weights, and of the weights times the middles plus 128, by the same multiplication as the codes.
__device__ __forceinline__ void weigh_middles(const WeightQuery & w, bool pair, uint32_t middles, int n_steps, int lane,
                                              float & ones, float & with_middle) {
    uint32_t column[4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const uint32_t m = pair ? in_shared<uint32_t>(middles + (lane % 4 * n_steps + step) * 4) : 0;
        column[step] = lane / 4 == 0 ? m ^ 0x80808080u : lane / 4 == 1 ? 0x01010101u : 0;
    }
    int c[4] = {};
    w.multiply(c, column);
    with_middle = __shfl_sync(~0u, whole(c[0], c[2]), lane & ~3);
    ones = __shfl_sync(~0u, whole(c[1], c[3]), lane & ~3);
}

// Tokens' 8-bit parameters for all channels: the recipe of `auto`. Where there is no token, what is read weighs
// nothing.
__device__ __forceinline__ void weigh_f8(const ValueBlock & block, const float (&s)[16], float own, int lane,
                                         Weighing & to) {
    const int n = block.n_steps;
    const uint32_t ranges = block.params();
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const uint32_t word = in_shared<uint32_t>(ranges + (lane % 4 * n + step) * 4);
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i] = fmaf(s[4 * step + i], above_range(word, i), kMagic);  // the 1 too much is half an integer at most
        }
        pack_bytes(v, to.query.high[step], to.query.low[step]);
    }
    const bool pair = block.r.v_kind == GGML_ZIPCACHE_PARAMS_F8_PAIR;
    float ones, with_middle;
    weigh_middles(to.query, pair, ranges + n * kStep, n, lane, ones, with_middle);
    const float unit = own * block.r.units.v_range;
    const float middle = pair ? (with_middle - 128 * ones) * (1.0f / 256) : 0.0f;
    to.offset = unit * (middle - block.shrink() / 2 * ones);
    to.unit = unit * block.shrink() / block.levels();
}

// Scales w [16] to the integers' range.
__device__ __forceinline__ void pack_scaled(float (&w)[16], float own, Weighing & to) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        most = fmaxf(most, fabsf(w[i]));
    }
    most = quad_max(most);
    const float up = most > 0 ? kMost / most : 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        w[i] *= up;
    }
    to.query.pack(w);
    to.unit = most / kMost * own;
}

// Tokens' f16 pairs for all channels, which copy() put into the slot: the policy zipcache.
__device__ __forceinline__ void weigh_pairs(const ValueBlock & block, const float (&s)[16], float own, int lane,
                                            Weighing & to) {
    float w[16], offset = 0;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        uint4 v = {};
        if (step < block.n_steps) {
            v = in_shared<uint4>(block.params() + (lane % 4 * block.n_steps + step) * 16);
        }
        const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float2 p = __half22float2(*reinterpret_cast<const __half2 *>(&words[i]));
            w[4 * step + i] = s[4 * step + i] * p.x;
            offset = fmaf(s[4 * step + i], p.y, offset);
        }
    }
    pack_scaled(w, own, to);
    to.offset = quad_sum(offset) * own;
}

// Any other parameters of tokens, of one set of channels.
__device__ __forceinline__ void weigh_any(const ValueBlock & block, int n_sets, int set, const float (&s)[16],
                                          float own, int lane, Weighing & to) {
    const int n_places = block.n_steps * kStep, first = set * n_places + (lane % 4) * (n_places / 4);
    const TokenParams params = token_params(shared_bytes() + block.params(), block.r.v_kind, n_sets * n_places,
                                            block.r.units.v_range, block.shrink(), block.ref.v_bits());
    float w[16], offset = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        const Param p = i < n_places / 4 ? params.at(first + i) : Param{0, 0};
        w[i] = s[i] * p.scale;
        offset = fmaf(s[i], p.min, offset);
    }
    pack_scaled(w, own, to);
    to.offset = quad_sum(offset) * own;
}

// The parameters of a channel of values: of scope segment or group.
__device__ __forceinline__ Param channel_param(const ValueBlock & block, const uint8_t * params, int at, int dim) {
    const auto & r = block.r;
    if (r.v_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
        const float2 p = __half22float2(reinterpret_cast<const __half2 *>(params)[at]);
        return {p.x, p.y};
    }
    const float range = range_at(params[at], 0) * r.units.v_range;
    return {range * block.shrink() / block.levels(),
            float(static_cast<int8_t>(params[dim + at])) * r.units.v_mid - range * (block.shrink() / 2)};
}

// Channels' parameters scale what the weights alone gave. total: of the weights.
template <int D>
__device__ __forceinline__ void add_channels(const ValueBlock & block, const float (&s)[16], float own, float total,
                                             int lane, Sums<D> & sums) {
    const auto & r = block.r;
    const int set = r.v_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR ? block.ref.tier() * D * 4 : 0;
    const uint8_t * params =
        r.v_scope == GGML_ZIPCACHE_SCOPE_GROUP ? shared_bytes() + block.params() : r.v_params + set;
    float w[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        w[i] = s[i];
    }
    Weighing weighing;
    pack_scaled(w, own, weighing);
    multiply_values<D>(weighing.query, weighing.unit, block.ref.v_bits(), block.slot, block.n_steps, lane,
                       [&](int i, float product, float unit) {
                           const Param p =
                               channel_param(block, params, channel_index(8 * (i / 2) + lane % 4 * 2 + i % 2, D), D);
                           sums.out[i] += fmaf(product * unit, p.scale, p.min * total * own);
                       });
}

// Adds a block's values by its logits. s is used up. Any: whatever the format; else tokens have parameters of their
// own, for all channels.
template <int D, bool Any>
__device__ __forceinline__ void add_values(const ValueBlock & block, float (&s)[16], int lane, Sums<D> & sums) {
    const auto & r = block.r;
    sums.move_to(r.v, lane);
    float total;
    const float own = take_weights<D>(s, sums, total);
    if (block.ref.v_bits() == 0) {
        return;
    }
    if (Any && r.v_scope != GGML_ZIPCACHE_SCOPE_TOKEN) {
        add_channels<D>(block, s, own, total, lane, sums);
        return;
    }
    const int n_sets = Any ? D / r.v_block : 1;
    if (n_sets == 1 && (!Any || r.v_kind != GGML_ZIPCACHE_PARAMS_F16_SCALE)) {
        Weighing w;
        if (r.v_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
            weigh_pairs(block, s, own, lane, w);
        } else {
            weigh_f8(block, s, own, lane, w);
        }
        sums.offset += w.offset;
        multiply_values<D>(w.query, w.unit, block.ref.v_bits(), block.slot, block.n_steps, lane,
                           [&](int i, float product, float unit) { sums.out[i] = fmaf(product, unit, sums.out[i]); });
        return;
    }
    // all are multiplied and one set is used: the loop stays short, and such formats are rare
#pragma unroll 1
    for (int set = 0; Any && set < n_sets; ++set) {
        Weighing w;
        weigh_any(block, n_sets, set, s, own, lane, w);
        multiply_values<D>(w.query, w.unit, block.ref.v_bits(), block.slot, block.n_steps, lane,
                           [&](int i, float product, float unit) {
                               sums.out[i] += i / 2 * 8 / r.v_block == set ? fmaf(product, unit, w.offset) : 0.0f;
                           });
    }
}

}  // namespace zipcache::cuda

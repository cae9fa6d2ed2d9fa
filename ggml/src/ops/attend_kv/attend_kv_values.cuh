#pragma once
// The second half of a unit: probabilities times its values, added to what the warp has.
#include "attend_kv_shape.cuh"

namespace zipcache::cuda {

// x: channel 8 i + lane / 4 at [i], of one space of stored values, to another. Spaces come by value: a struct whose
// address is taken is kept in memory.
template <int D>
__device__ __noinline__ void change_space(float * x, Space from, Space to, int lane) {
    constexpr int kN = Shape<D>::kRegs;
    float y[kN];
#pragma unroll
    for (int i = 0; i < kN; ++i) {
        y[i] = x[i];
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {  // out of one, into the other
        if (half == 0 ? from.rotate : to.rotate) {
            sums_hadamard(y, D & -D);
        }
        if (half == 0) {
#pragma unroll
            for (int i = 0; i < kN; ++i) {
                const int channel = 8 * i + lane / 4;
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

// What a warp has of an item: of head lane % 4 of each tile, channel 8 i + lane / 4 at [i].
template <int D, int T>
struct Sums {
    float out[T][Shape<D>::kRegs];  // unnormalized, in `space`
    float offset[T];                // to be added to each of them
    float maximum[T], sum[T];       // of logits to base 2, or up to 8 less; and of 2^(logit - maximum)
    Space space;

    __device__ __forceinline__ void clear(const Space & home) {
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
#pragma unroll
            for (int i = 0; i < Shape<D>::kRegs; ++i) {
                out[tile][i] = 0;
            }
            offset[tile] = sum[tile] = 0;
            maximum[tile] = -INFINITY;
        }
        space = home;
    }

    // Moves to another space of stored values.
    __device__ __forceinline__ void move_to(const Space & to, int lane) {
        if (space.divisor == to.divisor && space.rotate == to.rotate) {
            return;
        }
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
            float x[Shape<D>::kRegs];
#pragma unroll
            for (int i = 0; i < Shape<D>::kRegs; ++i) {
                x[i] = out[tile][i] + offset[tile];
            }
            change_space<D>(x, space, to, lane);
#pragma unroll
            for (int i = 0; i < Shape<D>::kRegs; ++i) {
                out[tile][i] = x[i];
            }
            offset[tile] = 0;
        }
        space = to;
    }
};

// What a unit's weights are worth.
template <int T>
struct Worth {
    float own[T];    // a weight is to be multiplied by it
    float total[T];  // sum of the weights
};

// Logits s [tile][N] become weights kShare 2^(s - their maximum), 0 where hidden. Takes their maximum and sum into
// `sums`.
template <int D, int T, int N>
__device__ __forceinline__ Worth<T> take_weights(float (&s)[T][N], Sums<D, T> & sums) {
    Worth<T> worth;
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        float most = -INFINITY;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            most = fmaxf(most, s[tile][i]);
        }
        most = rows_max(most);
        // the reference lags behind the maximum, so that sums are seldom scaled
        float & maximum = sums.maximum[tile];
        const float top = most > maximum + 8 ? most : maximum;
        const float safe = top == -INFINITY ? 0 : top;  // nothing seen yet
        const float keep = exp2_fast(maximum - safe), own = exp2_fast(most - safe) * (1 / kShare);
        const float reference = most == -INFINITY ? 0 : most - kLog2Share;
        float total = 0;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            s[tile][i] = exp2_fast(s[tile][i] - reference);
            total += s[tile][i];
        }
        total = rows_sum(total);
        if (__any_sync(~0u, keep != 1)) {
#pragma unroll
            for (int i = 0; i < Shape<D>::kRegs; ++i) {
                sums.out[tile][i] *= keep;
            }
            sums.offset[tile] *= keep;
            sums.sum[tile] *= keep;
        }
        sums.sum[tile] += total * own;
        maximum = top;
        worth.own[tile] = own;
        worth.total[tile] = total;
    }
    return worth;
}

// The weights of 64 places as B fragments of integers: a word for each 16 places.
template <int T>
struct WeightQuery {
    uint32_t q[T][4];

    // v [8]: of places 8 i + lane / 4, integers as kMagic puts them in the low bits of floats. The lanes of C that have
    // a head hand its places over to those that feed its columns.
    __device__ __forceinline__ void pack(int tile, const float (&v)[8], int lane) {
        const Feed feed(lane);
#pragma unroll
        for (int step = 0; step < 4; step += 2) {
            uint32_t x[2];  // then of places 8 (lane / 4 % 2) + 2 (lane % 4) and + 1 of the head that the lane feeds
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                x[i] = transposed(
                    __byte_perm(__float_as_uint(v[2 * (step + i)]), __float_as_uint(v[2 * (step + i) + 1]), 0x5410));
            }
            const uint32_t mine = __byte_perm(x[0], x[1], feed.low ? 0x6420 : 0x7531);
            const uint32_t yours = __byte_perm(x[0], x[1], feed.low ? 0x7531 : 0x6420);
            const uint32_t other = __shfl_xor_sync(~0u, yours, 4);
            q[tile][step] = __byte_perm(mine, other, feed.low ? 0x1054 : 0x5410) ^ feed.flip;
            q[tile][step + 1] = __byte_perm(mine, other, feed.low ? 0x3276 : 0x7632) ^ feed.flip;
        }
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

// Integer products of the weights with channels 8 first + [0, 8 N). Places that the block has not weigh nothing,
// whatever lies in the slot.
template <int Bits, int D, int T, int N>
__device__ __forceinline__ void multiply_channels(const WeightQuery<T> & w, uint32_t slot, int n_steps, int lane,
                                                  int first, int (&c)[T][N][4]) {
#pragma unroll
    for (int i = 0; i < T * N; ++i) {
        auto & own = c[i / N][i % N];
        own[0] = own[1] = own[2] = own[3] = 0;
    }
#pragma unroll 1
    for (int pair = 0; 2 * pair < n_steps; ++pair) {
        uint32_t codes[2][2 * N];
        unpack_in_place<Bits, D>(slot, n_steps, 2 * pair, lane, first, codes[0]);
        unpack_in_place<Bits, D>(slot, n_steps, 2 * pair + 1, lane, first, codes[1]);
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
            // chosen, not indexed: registers have no addresses
            const uint32_t w0 = pair == 0 ? w.q[tile][0] : w.q[tile][2], w1 = pair == 0 ? w.q[tile][1] : w.q[tile][3];
#pragma unroll
            for (int i = 0; i < N; ++i) {
                mma_k32(c[tile][i], codes[0][2 * i], codes[0][2 * i + 1], codes[1][2 * i], codes[1][2 * i + 1], w0, w1);
            }
        }
    }
}

// Registers of codes that are multiplied at a time: as many as leave room for the products.
constexpr int regs_at_once(int n_regs, int n_tiles) {
    while (n_regs * n_tiles > (n_tiles == 1 ? 16 : 8) && n_regs % 4 == 0) {
        n_regs /= 2;
    }
    return n_regs;
}

// Calls use(tile, number of a register of sums, the product, what divides its unit) for each channel of the lane.
template <int D, int T, class Use>
__device__ __forceinline__ void multiply_values(const WeightQuery<T> & w, int bits, uint32_t slot, int n_steps,
                                                int lane, Use && use) {
    with_bits(bits, [&](auto n_bits) {
        constexpr int kRegs = Shape<D>::kRegs, kN = regs_at_once(kRegs, T);
#pragma unroll
        for (int first = 0; first < kRegs; first += kN) {
            int c[T][kN / 2][4];
            multiply_channels<decltype(n_bits)::value, D, T>(w, slot, n_steps, lane, first, c);
#pragma unroll
            for (int i = 0; i < T * kN; ++i) {
                const int tile = i / kN, reg = i % kN;
                const auto & own = c[tile][reg / 2];
                use(tile, first + reg, whole(own[reg % 2 * 2], own[reg % 2 * 2 + 1]),
                    1 / float(1 << place_in_byte<decltype(n_bits)::value>(first + reg)));
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
template <int T>
struct Weighing {
    WeightQuery<T> query;
    float unit[T];    // of a product
    float offset[T];  // of each channel
};

// Tokens' 8-bit parameters for all channels: the recipe of `auto`. Where there is no token, what is read weighs
// nothing.
template <int T>
__device__ __forceinline__ void weigh_f8(const ValueBlock & block, const float (&s)[T][8], const Worth<T> & worth,
                                         int lane, Weighing<T> & to) {
    constexpr uint32_t kOnes = 0x01010101u;
    const int n = block.n_steps;
    const uint32_t ranges = block.params(), middles = ranges + n * kStep;
    const bool pair = block.r.v_kind == GGML_ZIPCACHE_PARAMS_F8_PAIR;
    uint32_t words[4];  // of ranges
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        words[step] = in_shared<uint32_t>(ranges + (lane / 8 * n + step) * 4);
    }
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        float v[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) {  // the 1 too much is half an integer at most
            v[i] = fmaf(s[tile][i], above_range(words[i / 2], i % 2 * 2 + lane / 4 % 2), kMagic);
        }
        to.query.pack(tile, v, lane);
    }
    // sums of the weights, and of the weights times the middles plus 128, by the same multiplication as the codes
    uint32_t m[4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        m[step] = pair ? in_shared<uint32_t>(middles + (lane % 4 * n + step) * 4) ^ 0x80808080u : 0;
    }
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        const auto & q = to.query.q[tile];
        int c[4];
        mma_k32_first(c, m[0], kOnes, m[1], kOnes, q[0], q[1]);
        mma_k32(c, m[2], kOnes, m[3], kOnes, q[2], q[3]);
        const float with_middle = whole(c[0], c[1]), ones = whole(c[2], c[3]);
        const float unit = worth.own[tile] * block.r.units.v_range;
        const float middle = pair ? (with_middle - 128 * ones) * (1.0f / 256) : 0.0f;
        to.offset[tile] = unit * (middle - block.shrink() / 2 * ones);
        to.unit[tile] = unit * __fdividef(block.shrink(), block.levels());
    }
}

// Scales w [8] to the integers' range.
template <int T>
__device__ __forceinline__ void pack_scaled(int tile, const float (&w)[8], float own, int lane, Weighing<T> & to) {
    float most = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        most = fmaxf(most, fabsf(w[i]));
    }
    most = rows_max(most);
    const float up = most > 0 ? __fdividef(kMost, most) : 0;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        v[i] = fmaf(w[i], up, kMagic);
    }
    to.query.pack(tile, v, lane);
    to.unit[tile] = most * (1 / kMost) * own;
}

// Tokens' f16 pairs for all channels, which copy() put into the slot: the policy zipcache.
template <int T>
__device__ __forceinline__ void weigh_pairs(const ValueBlock & block, const float (&s)[T][8], const Worth<T> & worth,
                                            int lane, Weighing<T> & to) {
    float2 p[8];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        uint4 v = {};
        if (step < block.n_steps) {
            v = in_shared<uint4>(block.params() + (lane / 8 * block.n_steps + step) * 16);
        }
        const bool odd = lane / 4 % 2 != 0;
        const uint32_t words[2] = {odd ? v.y : v.x, odd ? v.w : v.z};
        p[2 * step] = __half22float2(*reinterpret_cast<const __half2 *>(&words[0]));
        p[2 * step + 1] = __half22float2(*reinterpret_cast<const __half2 *>(&words[1]));
    }
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        float w[8], offset = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            w[i] = s[tile][i] * p[i].x;
            offset = fmaf(s[tile][i], p[i].y, offset);
        }
        pack_scaled(tile, w, worth.own[tile], lane, to);
        to.offset[tile] = rows_sum(offset) * worth.own[tile];
    }
}

// Any other parameters of tokens, of one set of channels.
template <int T>
__device__ __forceinline__ void weigh_any(const ValueBlock & block, int n_sets, int set, const float (&s)[T][8],
                                          const Worth<T> & worth, int lane, Weighing<T> & to) {
    const int n_places = block.n_steps * kStep;
    const int first = set * n_places + lane / 8 * (n_places / 4) + lane / 4 % 2;
    const TokenParams params = token_params(shared_bytes() + block.params(), block.r.v_kind, n_sets * n_places,
                                            block.r.units.v_range, block.shrink(), block.ref.v_bits());
    float w[T][8], offset[T] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        const Param p = 8 * i < n_places ? params.at(first + 2 * i) : Param{0, 0};
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
            w[tile][i] = s[tile][i] * p.scale;
            offset[tile] = fmaf(s[tile][i], p.min, offset[tile]);
        }
    }
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        pack_scaled(tile, w[tile], worth.own[tile], lane, to);
        to.offset[tile] = rows_sum(offset[tile]) * worth.own[tile];
    }
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

// Channels' parameters scale what the weights alone gave.
template <int D, int T>
__device__ __forceinline__ void add_channels(const ValueBlock & block, const float (&s)[T][8], const Worth<T> & worth,
                                             int lane, Sums<D, T> & sums) {
    const auto & r = block.r;
    const int set = r.v_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR ? block.ref.tier() * D * 4 : 0;
    const uint8_t * params =
        r.v_scope == GGML_ZIPCACHE_SCOPE_GROUP ? shared_bytes() + block.params() : r.v_params + set;
    Weighing<T> w;
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
        pack_scaled(tile, s[tile], worth.own[tile], lane, w);
    }
    multiply_values<D>(
        w.query, block.ref.v_bits(), block.slot, block.n_steps, lane, [&](int tile, int i, float product, float part) {
            const Param p = channel_param(block, params, channel_index(8 * i + lane / 4, D), D);
            sums.out[tile][i] +=
                fmaf(product * (w.unit[tile] * part), p.scale, p.min * worth.total[tile] * worth.own[tile]);
        });
}

// Adds a block's values by its logits. s is used up. Any: whatever the format; else tokens have parameters of their
// own, for all channels.
template <int D, int T, bool Any>
__device__ __forceinline__ void add_values(const ValueBlock & block, float (&s)[T][8], int lane, Sums<D, T> & sums) {
    const auto & r = block.r;
    sums.move_to(r.v, lane);
    const Worth<T> worth = take_weights(s, sums);
    if (block.ref.v_bits() == 0) {
        return;
    }
    if (Any && r.v_scope != GGML_ZIPCACHE_SCOPE_TOKEN) {
        add_channels(block, s, worth, lane, sums);
        return;
    }
    const int n_sets = Any ? D / r.v_block : 1;
    if (n_sets == 1 && (!Any || r.v_kind != GGML_ZIPCACHE_PARAMS_F16_SCALE)) {
        Weighing<T> w;
        if (r.v_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
            weigh_pairs(block, s, worth, lane, w);
        } else {
            weigh_f8(block, s, worth, lane, w);
        }
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
            sums.offset[tile] += w.offset[tile];
        }
        multiply_values<D>(w.query, block.ref.v_bits(), block.slot, block.n_steps, lane,
                           [&](int tile, int i, float product, float part) {
                               sums.out[tile][i] = fmaf(product, w.unit[tile] * part, sums.out[tile][i]);
                           });
        return;
    }
    if constexpr (Any) {
        // all are multiplied and one set is used: the loop stays short, and such formats are rare
#pragma unroll 1
        for (int set = 0; set < n_sets; ++set) {
            Weighing<T> w;
            weigh_any(block, n_sets, set, s, worth, lane, w);
            multiply_values<D>(w.query, block.ref.v_bits(), block.slot, block.n_steps, lane,
                               [&](int tile, int i, float product, float part) {
                                   sums.out[tile][i] += i * 8 / r.v_block == set
                                                            ? fmaf(product, w.unit[tile] * part, w.offset[tile])
                                                            : 0.0f;
                               });
        }
    }
}

}  // namespace zipcache::cuda

#pragma once
// The second half of a unit: probabilities times its values, added to what the warp has.
#include "attend_kv_shape.cuh"

namespace zipcache::cuda {

// What a warp has of an item: one query head in each four lanes, channel 8 i + 2 quarter + e at [2 i + e].
template <int D>
struct Sums {
    float out[Shape<D>::kQuarter];  // unnormalized, in `space`
    float offset;                   // to be added to each of them
    float maximum, sum;             // of logits to base 2, and of 2^(logit - maximum)
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
        constexpr int kSize = D & -D;
#pragma unroll
        for (int i = 0; i < Shape<D>::kQuarter; ++i) {
            out[i] += offset;
        }
        offset = 0;
        if (space.rotate) {
            quad_hadamard<1>(out, kSize, rsqrtf(float(kSize)));
        }
#pragma unroll
        for (int i = 0; i < Shape<D>::kRegs; ++i) {
            const int channel = 8 * i + lane % 4 * 2;
            const float2 from =
                space.divisor ? *reinterpret_cast<const float2 *>(space.divisor + channel) : float2{1, 1};
            const float2 into = to.divisor ? *reinterpret_cast<const float2 *>(to.divisor + channel) : float2{1, 1};
            out[2 * i] *= from.x / into.x;
            out[2 * i + 1] *= from.y / into.y;
        }
        if (to.rotate) {
            quad_hadamard<1>(out, kSize, rsqrtf(float(kSize)));
        }
        space = to;
    }
};

// Logits s [N] become weights 2^(s - their maximum), 0 where hidden. Takes their maximum and sum into `sums` and
// returns what the weights are to be multiplied by.
template <int D, int N>
__device__ __forceinline__ float take_weights(float (&s)[N], Sums<D> & sums, float & total) {
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        most = fmaxf(most, s[i]);
    }
    most = quad_max(most);
    const float top = fmaxf(most, sums.maximum);
    const float safe = top == -INFINITY ? 0 : top;  // nothing seen yet
    const float keep = exp2_fast(sums.maximum - safe), own = exp2_fast(most - safe);
    const float reference = most == -INFINITY ? 0 : most;
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

// Integer products of the weights with codes of tiles [First, First + N) of 8 channels: c [N].
template <int D, int First, int N>
__device__ __forceinline__ void multiply_tiles(const WeightQuery & w, int bits, const uint8_t * codes, int n_steps,
                                               int lane, int (&c)[N][4]) {
    with_bits(bits, [&](auto n_bits) {
        uint32_t b[4][N] = {};
#pragma unroll
        for (int step = 0; step < 4; ++step) {
            if (step < n_steps) {
                unpack<decltype(n_bits)::value, D>(codes, n_steps, step, lane, First, b[step]);
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const uint32_t column[4] = {b[0][i], b[1][i], b[2][i], b[3][i]};
            w.multiply(c[i], column);
        }
    });
}

// Runs body(Int<first tile>, Int<number>) for chunks of up to 32 channels.
template <int D, int First, class Body>
__device__ __forceinline__ void for_chunks(Body && body) {
    constexpr int kN = Shape<D>::kRegs - First < 4 ? Shape<D>::kRegs - First : 4;
    body(Int<First>(), Int<kN>());
    if constexpr (First + kN < Shape<D>::kRegs) {
        for_chunks<D, First + kN>(body);
    }
}

// How a block's values are to be read.
struct ValueBlock {
    const HeadRecord & r;
    const BlockRef & ref;
    const uint8_t * part;  // shared: codes, then parameters
    int n_steps;           // of 16 places

    __device__ __forceinline__ const uint8_t * params() const { return part + (ref.v_params - ref.v_codes) * kAlign; }
    __device__ __forceinline__ float shrink() const { return r.v_shrink[ref.tier]; }
};

// Sums of the weights, and of the weights times the middles plus 128, by the same multiplication as the codes.
__device__ __forceinline__ void weigh_middles(const WeightQuery & w, const uint8_t * middles, int n_steps, int lane,
                                              float & ones, float & with_middle) {
    uint32_t column[4] = {};
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        if (step < n_steps) {
            const uint32_t m =
                middles ? *reinterpret_cast<const uint32_t *>(middles + (lane % 4 * n_steps + step) * 4) : 0;
            column[step] = lane / 4 == 0 ? m ^ 0x80808080u : lane / 4 == 1 ? 0x01010101u : 0;
        }
    }
    int c[4] = {};
    w.multiply(c, column);
    with_middle = __shfl_sync(~0u, whole(c[0], c[2]), lane & ~3);
    ones = __shfl_sync(~0u, whole(c[1], c[3]), lane & ~3);
}

// Tokens' 8-bit parameters for all channels: the recipe of `auto`.
template <int D>
__device__ __forceinline__ void add_f8_tokens(const ValueBlock & block, float (&s)[16], float own, int lane,
                                              Sums<D> & sums) {
    const int n = block.n_steps;
    const uint8_t * ranges = block.params();
    float w[16];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
        const uint32_t word = step < n ? *reinterpret_cast<const uint32_t *>(ranges + (lane % 4 * n + step) * 4) : 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w[4 * step + i] = s[4 * step + i] * (kMost / kTop) * range_at(word, i);
        }
    }
    WeightQuery query;
    query.pack(w);
    const bool pair = block.r.v_kind == GGML_ZIPCACHE_PARAMS_F8_PAIR;
    float ones, with_middle;
    weigh_middles(query, pair ? ranges + n * kStep : nullptr, n, lane, ones, with_middle);
    const float unit = own * (kTop / kMost) * block.r.units.v_range;
    const float middle = pair ? (with_middle - 128 * ones) * (1.0f / 256) : 0.0f;
    sums.offset += unit * (middle - block.shrink() / 2 * ones);
    const float step_size = unit * block.shrink() / float((1 << block.ref.v_bits) - 1);
    for_chunks<D, 0>([&](auto first, auto count) {
        int c[decltype(count)::value][4] = {};
        multiply_tiles<D, decltype(first)::value>(query, block.ref.v_bits, block.part, n, lane, c);
#pragma unroll
        for (int i = 0; i < decltype(count)::value; ++i) {
            float * out = &sums.out[2 * (decltype(first)::value + i)];
            out[0] = fmaf(whole(c[i][0], c[i][2]), step_size, out[0]);
            out[1] = fmaf(whole(c[i][1], c[i][3]), step_size, out[1]);
        }
    });
}

// Any parameters of tokens, for `block` channels each. The weights of a set of parameters are packed anew.
template <int D>
__device__ __forceinline__ void add_tokens(const ValueBlock & block, const float (&s)[16], float own, int lane,
                                           Sums<D> & sums) {
    const int n_places = block.n_steps * kStep, first_place = (lane % 4) * (n_places / 4);
    const int n_sets = D / block.r.v_block;
    const uint8_t * data =
        block.r.v_shared_heads ? reinterpret_cast<const uint8_t *>(block.r.v_shared + block.ref.place) : block.params();
    const TokenParams params =
        token_params(data, block.r.v_kind, n_sets * n_places, block.r.units.v_range, block.shrink(), block.ref.v_bits);
    WeightQuery query;
    float unit = 0, offset = 0;
    int packed = -1;
    for_chunks<D, 0>([&](auto first, auto count) {
        constexpr int kFirst = decltype(first)::value, kCount = decltype(count)::value;
        const int set = n_sets == 1 ? 0 : kFirst * 8 / block.r.v_block;
        if (set != packed) {
            packed = set;
            float w[16], most = 0;
            offset = 0;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                const Param p = i < n_places / 4 ? params.at(set * n_places + first_place + i) : Param{0, 0};
                w[i] = s[i] * p.scale;
                most = fmaxf(most, fabsf(w[i]));
                offset = fmaf(s[i], p.min, offset);
            }
            most = quad_max(most);
            offset = quad_sum(offset) * own;
            const float up = most > 0 ? kMost / most : 0;
#pragma unroll
            for (int i = 0; i < 16; ++i) {
                w[i] *= up;
            }
            query.pack(w);
            unit = most / kMost * own;
        }
        int c[kCount][4] = {};
        multiply_tiles<D, kFirst>(query, block.ref.v_bits, block.part, block.n_steps, lane, c);
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            float * out = &sums.out[2 * (kFirst + i)];
            out[0] += fmaf(whole(c[i][0], c[i][2]), unit, offset);
            out[1] += fmaf(whole(c[i][1], c[i][3]), unit, offset);
        }
    });
}

// Channels' parameters: they scale what the weights alone gave. total: of the weights.
template <int D>
__device__ __forceinline__ void add_channels(const ValueBlock & block, const float (&s)[16], float own, float total,
                                             int lane, Sums<D> & sums) {
    const auto & r = block.r;
    const bool f16 = r.v_kind == GGML_ZIPCACHE_PARAMS_F16_PAIR;
    const uint8_t * params =
        r.v_scope == GGML_ZIPCACHE_SCOPE_GROUP ? block.params() : r.v_params + (f16 ? block.ref.tier * D * 4 : 0);
    float w[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        w[i] = s[i] * kMost;
    }
    WeightQuery query;
    query.pack(w);
    const float unit = own / kMost, levels = float((1 << block.ref.v_bits) - 1);
    for_chunks<D, 0>([&](auto first, auto count) {
        constexpr int kFirst = decltype(first)::value, kCount = decltype(count)::value;
        int c[kCount][4] = {};
        multiply_tiles<D, kFirst>(query, block.ref.v_bits, block.part, block.n_steps, lane, c);
#pragma unroll
        for (int i = 0; i < 2 * kCount; ++i) {
            const int at = channel_index(8 * (kFirst + i / 2) + lane % 4 * 2 + i % 2, D);
            float scale, min;
            if (f16) {
                const float2 p = __half22float2(reinterpret_cast<const __half2 *>(params)[at]);
                scale = p.x;
                min = p.y;
            } else {
                const float range = range_at(params[at], 0) * r.units.v_range;
                scale = range * block.shrink() / levels;
                min = float(static_cast<int8_t>(params[D + at])) * r.units.v_mid - range * (block.shrink() / 2);
            }
            const float product = whole(c[i / 2][i % 2], c[i / 2][i % 2 + 2]) * unit;
            sums.out[2 * kFirst + i] += fmaf(product, scale, min * total * own);
        }
    });
}

// Adds a block's values by its logits. s is used up.
template <int D>
__device__ __forceinline__ void add_values(const ValueBlock & block, float (&s)[16], int lane, Sums<D> & sums) {
    const auto & r = block.r;
    sums.move_to(r.v, lane);
    float total;
    const float own = take_weights<D>(s, sums, total);
    if (block.ref.v_bits == 0) {
        return;
    }
    const bool f8 = r.v_kind == GGML_ZIPCACHE_PARAMS_F8_PAIR || r.v_kind == GGML_ZIPCACHE_PARAMS_F8_SCALE;
    if (r.v_scope != GGML_ZIPCACHE_SCOPE_TOKEN) {
        add_channels<D>(block, s, own, total, lane, sums);
    } else if (f8 && r.v_block >= D) {
        add_f8_tokens<D>(block, s, own, lane, sums);
    } else {
        add_tokens<D>(block, s, own, lane, sums);
    }
}

}  // namespace zipcache::cuda

#pragma once
// Which token stands at which place of a segment: its tiers, read from an array or from a segment's tags.
#include "cuda_layout.h"

namespace zipcache::cuda {

constexpr int kOrderThreads = 512;
constexpr uint32_t kNoToken = ~0u;

// [n_orders, n_tokens] bytes
struct TierArray {
    const uint8_t * tier;
    int64_t n_tokens;

    __device__ int at(int order, int64_t token) const { return tier[order * n_tokens + token]; }
};

struct TierTags {
    const uint8_t * tags;
    int64_t n_bytes;  // of an order
    int bits;

    __device__ int at(int order, int64_t token) const {
        return bits == 0 ? 0 : tags[order * n_bytes + token * bits / 8] >> (token * bits % 8) & ((1 << bits) - 1);
    }
};

// Place i of a tier whose first place is `first`.
__device__ inline int64_t place_of(const ggml_zipcache_format & f, int64_t first, uint32_t i) {
    return first + i / f.group * step_places(f.group) + i % f.group;
}

// One block of threads for each order. counts [n_orders, n_tiers]; token [n_orders, max_places], kNoToken at padding:
// filled with 0xFF before. Called by a kernel of kOrderThreads threads.
template <class Tiers>
__device__ void find_places(const ggml_zipcache_format & f, const Tiers & tiers, int64_t n_tokens, int64_t max_places,
                            uint32_t * counts, uint32_t * token) {
    __shared__ uint32_t before[format::kMaxTiers][kOrderThreads];  // a thread's share of a tier, then those before it
    __shared__ uint32_t total[format::kMaxTiers];
    __shared__ int64_t start[format::kMaxTiers];  // a tier's first place
    const int order = blockIdx.x, thread = threadIdx.x;
    const int64_t share = (n_tokens + kOrderThreads - 1) / kOrderThreads;
    const int64_t first = min(n_tokens, thread * share), last = min(n_tokens, first + share);
    for (int t = 0; t < f.n_tiers; ++t) {
        before[t][thread] = 0;
    }
    for (int64_t i = first; i < last; ++i) {
        ++before[min(tiers.at(order, i), f.n_tiers - 1)][thread];
    }
    __syncthreads();
    if (thread < f.n_tiers) {
        uint32_t sum = 0;
        for (int i = 0; i < kOrderThreads; ++i) {
            const uint32_t own = before[thread][i];
            before[thread][i] = sum;
            sum += own;
        }
        total[thread] = counts[order * f.n_tiers + thread] = sum;
    }
    __syncthreads();
    if (thread == 0) {
        int64_t place = 0;
        for (int t = 0; t < f.n_tiers; ++t) {
            start[t] = place;
            place += cuda_tier_places(f, t, total[t]);
        }
    }
    __syncthreads();
    for (int64_t i = first; i < last; ++i) {
        const int tier = min(tiers.at(order, i), f.n_tiers - 1);
        if (!format::evicts(f, tier)) {
            token[order * max_places + place_of(f, start[tier], before[tier][thread]++)] = uint32_t(i);
        }
    }
}

// A block of a head, found by its number among all of the head's.
struct FoundBlock {
    int tier, n;     // tokens
    int n_places;    // of 16
    int64_t place;   // its first, in the head
    int64_t offset;  // from the first block of its tier
    bool exists;
};

__device__ inline FoundBlock find_block(const ggml_zipcache_format & f, const uint32_t * counts, int64_t number) {
    FoundBlock b = {};
    for (int t = 0; t < f.n_tiers; ++t) {
        const int64_t n = tier_blocks(f, t, counts[t]);
        if (number >= n) {
            number -= n;
            b.place += cuda_tier_places(f, t, counts[t]);
            continue;
        }
        b.tier = t;
        b.n = int(min(int64_t(f.group), counts[t] - number * f.group));
        b.n_places = int(step_places(b.n));
        b.place += number * step_places(f.group);
        b.offset = number * block_layout(f, t, step_places(f.group)).size;
        b.exists = true;
        return b;
    }
    return b;
}

// x [n, stride] f32 in shared memory <- rows times the matrix that `rotate` means; warps take rows in turn. The same
// additions in the same order as transform.h, so that codes come out the same.
__device__ inline void rotate_rows(float * x, int n, int stride, int dim) {
    const int size = dim & -dim, lane = threadIdx.x % kLanes;
    const float scale = 1.0f / sqrtf(float(size));
    for (int row = threadIdx.x / kLanes; row < n; row += blockDim.x / kLanes) {
        float * at = x + row * stride;
        for (int half = 1; half < size; half *= 2) {
            __syncwarp();
            for (int i = lane; i < dim / 2; i += kLanes) {
                const int low = i / half * 2 * half + i % half;
                const float a = at[low], b = at[low + half];
                at[low] = a + b;
                at[low + half] = a - b;
            }
        }
        __syncwarp();
        for (int c = lane; c < dim; c += kLanes) {
            at[c] *= scale;
        }
    }
}

struct Value {
    float scale, min;
};

// As format::Params::at, for any scope.
struct ParamReader {
    const uint8_t * data;
    int kind;
    int64_t n;  // entries
    float range_unit, mid_unit, low, step, bias;

    __device__ ParamReader(const ggml_zipcache_side & side, int tier, const uint8_t * from, int64_t entries,
                           float range, float mid)
        : data(from), kind(side.params), n(entries), range_unit(range) {
        const int bits = side.bits[tier];
        mid_unit = side.scope == GGML_ZIPCACHE_SCOPE_TOKEN ? 0.0f : mid;
        low = side.shrink[tier] / 2;
        step = bits > 0 ? side.shrink[tier] / format::levels(bits) : 0.0f;
        bias = bits > 0 ? float(1 << (bits - 1)) : 0.0f;
    }
    __device__ Value at(int64_t i) const {
        if (kind == GGML_ZIPCACHE_PARAMS_F16_PAIR) {
            const float2 p = __half22float2(reinterpret_cast<const __half2 *>(data)[i]);
            return {p.x, p.y};
        }
        if (kind == GGML_ZIPCACHE_PARAMS_F16_SCALE) {
            const float scale = __half2float(reinterpret_cast<const __half *>(data)[i]);
            return {scale, -bias * scale};
        }
        const float range = (__uint_as_float((uint32_t(data[i]) << 19) + (127u << 23)) - 1.0f) * range_unit;
        const float mid = kind == GGML_ZIPCACHE_PARAMS_F8_PAIR ? float(static_cast<int8_t>(data[n + i])) : 0.0f;
        const float middle = mid * (mid_unit > 0 ? mid_unit : range * (1.0f / 256));
        return {range * step, middle - range * low};
    }
};

// Where a block's codes and parameters of one side lie.
struct SidePlace {
    const ggml_zipcache_side & how;
    uint8_t * codes;
    uint8_t * params;
    int64_t n;  // entries of `params`

    __device__ SidePlace(const ggml_zipcache_format & f, const SegmentLayout & layout, uint8_t * segment, int head,
                         const FoundBlock & b, uint32_t tier_offset, bool key)
        : how(key ? f.k : f.v) {
        const BlockLayout own = block_layout(f, b.tier, b.n_places);
        uint8_t * block = segment + tier_offset + b.offset;
        codes = block + (key ? 0 : own.v_codes);
        params = block + (key ? own.k_params : own.v_params);
        n = format::block_param_entries(f, how, b.n_places);
        if (how.scope == GGML_ZIPCACHE_SCOPE_SEGMENT) {
            const int set = format::segment_sets(f, how) > 1 ? b.tier : 0;
            params = segment + (key ? layout.k_params : layout.v_params) + head * format::segment_param_bytes(f, how) +
                     int64_t(set) * f.head_dim * format::entry_bytes(how.params);
            n = f.head_dim;
        } else if (format::spans_heads(f, how)) {
            params = segment + (key ? layout.k_shared : layout.v_shared) + b.place * int64_t(sizeof(format::Pair));
            n = b.n_places;
        }
    }
    // The entry of an element.
    __device__ int64_t entry(int place, int channel, int n_places, int dim) const {
        return how.scope != GGML_ZIPCACHE_SCOPE_TOKEN
                   ? channel_index(channel, dim)
                   : (how.block < dim ? channel / how.block * n_places : 0) + place_index(place, n_places);
    }
};

}  // namespace zipcache::cuda

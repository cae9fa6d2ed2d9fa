#pragma once
// Parameters of codes, x' = scale * code + min, as format.h writes them.
#include "metal/codes.h"

namespace zipcache {
namespace gpu {

// ggml_zipcache_scope, ggml_zipcache_params
enum : int { kScopeSegment, kScopeGroup, kScopeToken };
enum : int { kF16Pair, kF16Scale, kF8Pair, kF8Scale };

inline float half_at(device const uchar * at) {
    return float(*reinterpret_cast<device const half *>(at));
}

// 8-bit ranges, in units.
inline float range_of(uint u) {
    return as_type<float>((u << 19) + (127u << 23)) - 1.0f;
}

// How one side of a tier reads its parameters.
struct ParamReader {
    int kind;
    int n;                       // entries
    float range_unit, mid_unit;  // mid_unit 0: middles are 256ths of the range
    float low, step, bias;       // shrink / 2, shrink / (2^bits - 1), 2^(bits - 1)

    // x: scale, y: min
    float2 at(device const uchar * data, int i) const {
        float2 param;
        if (kind == kF16Pair) {
            param.x = half_at(data + i * 4);
            param.y = half_at(data + i * 4 + 2);
            return param;
        }
        if (kind == kF16Scale) {
            param.x = half_at(data + i * 2);
            param.y = -bias * param.x;
            return param;
        }
        const float range = range_of(data[i]) * range_unit;
        const float mid = kind == kF8Pair ? float(reinterpret_cast<device const int8_t *>(data)[n + i]) : 0.0f;
        const float middle = mid * (mid_unit > 0 ? mid_unit : range * (1.0f / 256));
        param.x = range * step;
        param.y = middle - range * low;
        return param;
    }
};

inline ParamReader param_reader(int kind, int n, int scope, int bits, float shrink, float range_unit, float mid_unit) {
    ParamReader r;
    r.kind = kind;
    r.n = n;
    r.range_unit = range_unit;
    r.mid_unit = scope == kScopeToken ? 0.0f : mid_unit;
    r.low = shrink / 2;
    r.step = bits > 0 ? shrink / float((1 << bits) - 1) : 0.0f;
    r.bias = bits > 0 ? float(1 << (bits - 1)) : 0.0f;
    return r;
}

// Decodes what 16 places of a block need, by one SIMD-group: [D] of channels, or [D / 32 rounded up][16] of tokens.
template <int D>
inline void stage_params(thread const ParamReader & reader, device const uchar * data, int scope, int block,
                         int n_places, int step, int lane, threadgroup float2 * staged) {
    const bool by_token = scope == kScopeToken;
    const int n = by_token ? (D + 31) / 32 * kStep : D;
    for (int i = lane; i < n; i += kLanes) {
        const int set = i / kStep * 32 / block, place = step * kStep + i % kStep;
        staged[i] = reader.at(data, by_token ? set * n_places + place_index(place, n_places) : channel_index(i, D));
    }
}

// Where stage_params left those of a code.
inline int staged_at(bool by_token, CodeSpot spot) {
    return by_token ? spot.channel / 32 * kStep + spot.place : spot.channel;
}

}  // namespace gpu
}  // namespace zipcache

#pragma once
// Rows to codes, as quantize_kv.cpp does it: the same parameters, the same codes, up to how a division is rounded. A
// block's side is one SIMD-group's work, 16 places at a time.
//
// Bytes: the rows are read two or three times (what goes beyond a block, the ranges of its channels, the codes), 2
// bytes an element each; codes and parameters are written once. Threadgroup memory: rows [16][D + 1] f32 and parameters
// [D] f32 x 2: 18.1 KiB at D = 256, so three SIMD-groups a core there, a dozen at D = 64. As in dequantize_kv it is
// the rotation that takes the time. It runs once per compression.
#include "metal/rotate.h"
#include "metal/segment.h"

// The portable code has no fused multiply-adds.
#pragma METAL fp contract(off)

namespace zipcache {
namespace gpu {

struct Range {
    float low, high;
};

inline Range no_range() {
    Range r;
    r.low = INFINITY;
    r.high = -INFINITY;
    return r;
}

inline bool empty(Range r) {
    return r.low > r.high;
}

inline void take(thread Range & r, float x) {
    r.low = fmin(r.low, x);
    r.high = fmax(r.high, x);
}

// Floats as integers of the same order: ranges that many SIMD-groups widen. [-low, high]; zeros mean empty.
inline uint ordered(float x) {
    const uint bits = as_type<uint>(x);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

inline float unordered(uint u) {
    return as_type<float>(u >> 31 ? u & 0x7FFFFFFFu : ~u);
}

inline void widen_shared(Address at, Range r) {
    if (!empty(r)) {
        atomic_fetch_max_explicit(write_at<atomic_uint>(at), ordered(-r.low), memory_order_relaxed);
        atomic_fetch_max_explicit(write_at<atomic_uint>(at + 4), ordered(r.high), memory_order_relaxed);
    }
}

inline Range shared_range(Address at) {
    device const uint * u = read_at<uint>(at);
    Range r = no_range();
    if (u[1] != 0) {
        r.low = -unordered(u[0]);
        r.high = unordered(u[1]);
    }
    return r;
}

// ---- Parameters ----

inline void write_half(device uchar * to, float x) {
    *reinterpret_cast<device half *>(to) = half(x);
}

inline void write_pair(Range r, int bits, device uchar * to) {
    const bool used = !empty(r) && bits > 0;
    const float low = used ? float(half(r.low)) : 0.0f;
    write_half(to, used ? fmax(0.0f, r.high - low) / float((1 << bits) - 1) : 0.0f);
    write_half(to + 2, low);
}

// llama.cpp's: of the element of the largest magnitude; up to 7 bits its sign takes the odd code.
inline void write_scale(Range r, int bits, device uchar * to) {
    const float extreme = empty(r) ? 0.0f : (-r.low > r.high ? r.low : r.high);
    write_half(to, bits == 8 ? fabs(extreme) / 127 : bits > 0 ? extreme / -float(1 << (bits - 1)) : 0.0f);
}

inline uchar covering_range(float x) {
    const uint bits = as_type<uint>(x + 1);
    return uchar(min(((bits + (1u << 19) - 1) >> 19) - (127u << 4), 255u));
}

inline float middle_of(Range r, float mid_unit) {
    const float unit = mid_unit > 0 ? mid_unit : (r.high - r.low) / 256;
    return unit > 0 ? fmin(fmax(round((r.low + r.high) / 2 / unit), -127.0f), 127.0f) : 0.0f;
}

// The width around that middle which covers both ends.
inline float covered(Range r, float middle, float mid_unit) {
    if (mid_unit > 0) {
        return 2 * fmax(r.high - middle * mid_unit, middle * mid_unit - r.low);
    }
    const float m = middle / 256;
    return fmax(fmax(0.0f, r.high / (0.5f + m)), -r.low / (0.5f - m));
}

// Entry `at` of n.
inline void write_param(int kind, Range r, int at, int n, int bits, float range_unit, float mid_unit,
                        device uchar * to) {
    if (kind == kF16Pair) {
        write_pair(r, bits, to + at * 4);
    } else if (kind == kF16Scale) {
        write_scale(r, bits, to + at * 2);
    } else if (kind == kF8Scale) {
        const float width = empty(r) ? 0.0f : 2 * fmax(fabs(r.low), fabs(r.high));
        to[at] = range_unit > 0 ? covering_range(width / range_unit) : uchar(0);
    } else {
        const float m = empty(r) ? 0.0f : middle_of(r, mid_unit);
        to[at] = range_unit > 0 && !empty(r) ? covering_range(covered(r, m, mid_unit) / range_unit) : uchar(0);
        to[n + at] = uchar(int(m) & 255);
    }
}

// What the units of 8-bit parameters must reach.
struct Widest {
    float width, middle;
};

inline Widest widest_of(Range r, int kind, int scope) {
    Widest w;
    w.width = w.middle = 0;
    if (empty(r) || kind < kF8Pair) {
        return w;
    }
    w.width = r.high - r.low;
    if (kind == kF8Scale) {
        w.width = 2 * fmax(fabs(r.low), fabs(r.high));
    } else if (scope == kScopeToken) {
        w.width = covered(r, middle_of(r, 0), 0);
    } else {
        w.middle = fabs(r.low + r.high) / 2;
    }
    return w;
}

inline void widen(thread Widest & w, Widest by) {
    w.width = fmax(w.width, by.width);
    w.middle = fmax(w.middle, by.middle);
}

inline Address widest_at(constant QuantizeParams & p, device const Format & f, int head, bool key) {
    return p.widest + ulong((key ? 0 : f.n_kv_heads) + head) * 8;
}

inline Address whole_at(constant QuantizeParams & p, device const Format & f, int head, bool key, int set) {
    return p.whole + (ulong((key ? 0 : f.n_kv_heads) + head) * f.n_tiers + set) * f.head_dim * 8;
}

inline Address shared_at(constant QuantizeParams & p, bool key, uint place) {
    return p.shared + ((key ? 0 : ulong(p.rows.max_places)) + place) * 8;
}

inline device const uint * counts_of(constant QuantizeParams & p, device const Format & f, int head) {
    return read_at<uint>(p.rows.counts) + (f.n_orders == 1 ? 0 : head) * f.n_tiers;
}

inline bool fits(constant QuantizeParams & p) {
    return read_at<SegmentHeader>(p.rows.segment)->magic != 0;
}

// ---- Header, tables, tags ----

// One thread.
template <int Threads>
[[kernel]] void quantize_kv_tables(KERNEL_ARGUMENTS(QuantizeParams)) {
    if (thread_index != 0) {
        return;
    }
    device const Format & f = *read_at<Format>(p.rows.format);
    uint n_places = 0;
    ulong blocks = 0;
    for (int head = 0; head < f.n_kv_heads; ++head) {
        uint places = 0;
        for (int t = 0; t < f.n_tiers; ++t) {
            const uint count = counts_of(p, f, head)[t];
            places += tier_places(f, t, count);
            blocks += tier_bytes(f, t, count);
        }
        n_places = max(n_places, places);
    }
    ulong at = segment_places(f, p.rows.n_tokens, n_places).blocks;
    const ulong n_bytes = at + blocks;
    device SegmentHeader & header = *write_at<SegmentHeader>(p.rows.segment);
    header.magic = n_bytes <= p.capacity ? uint(kMagic) : 0u;
    header.n_tokens = uint(p.rows.n_tokens);
    header.n_bytes = uint(n_bytes);
    header.n_places = n_places;
    for (int head = 0; head < f.n_kv_heads && n_bytes <= p.capacity; ++head) {
        device uint * table = write_at<uint>(p.rows.segment + head_table(f, head));
        for (int t = 0; t < f.n_tiers; ++t) {
            const uint count = counts_of(p, f, head)[t];
            table[t] = count;
            table[f.n_tiers + t] = uint(at);
            at += tier_bytes(f, t, count);
        }
    }
}

// A thread a byte.
template <int Threads>
[[kernel]] void quantize_kv_tags(KERNEL_ARGUMENTS(QuantizeParams)) {
    device const Format & f = *read_at<Format>(p.rows.format);
    const ulong n_bytes = tag_bytes(f, p.rows.n_tokens), at = ulong(group.x) * Threads + thread_index;
    if (f.tag_bits == 0 || at >= f.n_orders * n_bytes || !fits(p)) {
        return;
    }
    const int each = 8 / f.tag_bits, n = p.rows.n_tokens;
    const ulong order = at / n_bytes;
    uint byte = 0;
    for (int i = 0; i < each; ++i) {
        const int token = int(at % n_bytes) * each + i;
        byte |= token < n ? uint(read_at<uchar>(p.tier)[order * n + token]) << (i * f.tag_bits) : 0u;
    }
    write_at<uchar>(p.rows.segment)[f.tags + at] = uchar(byte);
}

// ---- Rows ----

// One side of a block, as its SIMD-group sees it.
struct BlockRows {
    FoundBlock b;
    int head, lane;
    bool key;
    threadgroup float * x;  // [16][D + 1]: the transformed rows of a step; padding holds zeros
};

// Those of a place in the grid [max_blocks, n_kv_heads, 2 sides].
inline BlockRows rows_at(constant QuantizeParams & p, device const Format & f, uint3 group, uint lane_index,
                         threadgroup uchar * shared) {
    BlockRows rows;
    rows.head = int(group.y);
    rows.lane = int(lane_index);
    rows.key = group.z == 0;
    rows.x = reinterpret_cast<threadgroup float *>(shared);
    rows.b = find_block(f, counts_of(p, f, rows.head), group.x);
    return rows;
}

template <int D>
inline void load_rows(constant QuantizeParams & p, device const Format & f, thread const BlockRows & rows, int step) {
    const int n = min(int(kStep), rows.b.n - step * kStep);
    const Address divisors = rows.key ? p.rows.k_divisor : p.rows.v_divisor;
    device const half * from =
        read_at<half>(rows.key ? p.rows.k : p.rows.v) + ulong(rows.head) * ulong(p.rows.stride) * D;
    device const uint * token = read_at<uint>(p.rows.token) +
                                ulong(f.n_orders == 1 ? 0 : rows.head) * p.rows.max_places + rows.b.place +
                                step * kStep;
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = rows.lane; i < kStep * D; i += kLanes) {
        const int place = i / D, c = i % D;
        const float inverse = divisors ? 1.0f / read_at<float>(divisors)[rows.head * D + c] : 1.0f;
        rows.x[place * (D + 1) + c] = place < n ? float(from[ulong(token[place]) * D + c]) * inverse : 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (rows.key ? f.k.rotate : f.v.rotate) {
        rotate_rows(rows.x, n, D + 1, D, rows.lane);
    }
}

// Ranges of a lane's channels, lane, lane + 32, ..., over a block.
template <int D>
inline void channel_ranges(constant QuantizeParams & p, device const Format & f, thread const BlockRows & rows,
                           thread Range (&ranges)[(D + 31) / 32]) {
    UNROLL
    for (int i = 0; i < (D + 31) / 32; ++i) {
        ranges[i] = no_range();
    }
    for (int step = 0; step < steps_of(rows.b.n); ++step) {
        load_rows<D>(p, f, rows, step);
        const int n = min(int(kStep), rows.b.n - step * kStep);
        UNROLL
        for (int i = 0; i < (D + 31) / 32; ++i) {
            const int c = i * kLanes + rows.lane;
            for (int place = 0; c < D && place < n; ++place) {
                take(ranges[i], rows.x[place * (D + 1) + c]);
            }
        }
    }
}

// Of `block` channels of a place of the step.
template <int D>
inline Range token_range(thread const BlockRows & rows, int place, int first, int block) {
    Range r = no_range();
    for (int c = first; c < first + block; ++c) {
        take(r, rows.x[place * (D + 1) + c]);
    }
    return r;
}

// First pass: what goes beyond a block. grid [max_blocks, n_kv_heads, 2 sides]
template <int D>
[[kernel]] void quantize_kv_measure(KERNEL_ARGUMENTS(QuantizeParams)) {
    device const Format & f = *read_at<Format>(p.rows.format);
    const BlockRows rows = rows_at(p, f, group, lane_index, shared);
    device const Side & side = rows.key ? f.k : f.v;
    const int scope = side.scope, kind = side.kind, block = side.block;
    const bool needed = kind >= kF8Pair || side.spans_heads || scope == kScopeSegment;
    if (!rows.b.exists || !needed || !fits(p)) {
        return;
    }
    Widest widest;
    widest.width = widest.middle = 0;
    if (scope != kScopeToken) {
        Range ranges[(D + 31) / 32];
        channel_ranges<D>(p, f, rows, ranges);
        const int set = side.n_sets > 1 ? rows.b.tier : 0;
        UNROLL
        for (int i = 0; i < (D + 31) / 32; ++i) {
            const int c = i * kLanes + rows.lane;
            if (c < D && scope == kScopeSegment) {
                widen_shared(whole_at(p, f, rows.head, rows.key, set) + ulong(c) * 8, ranges[i]);
            } else if (c < D) {
                widen(widest, widest_of(ranges[i], kind, scope));
            }
        }
    }
    for (int step = 0; scope == kScopeToken && step < steps_of(rows.b.n); ++step) {
        load_rows<D>(p, f, rows, step);
        const int n = min(int(kStep), rows.b.n - step * kStep);
        for (int i = rows.lane; i < D / block * kStep; i += kLanes) {
            const int place = i % kStep;
            if (place < n) {
                const Range r = token_range<D>(rows, place, i / kStep * block, block);
                const int at = place_index(step * kStep + place, rows.b.n_places);
                if (side.spans_heads) {
                    widen_shared(shared_at(p, rows.key, rows.b.place + uint(at)), r);
                } else {
                    widen(widest, widest_of(r, kind, scope));
                }
            }
        }
    }
    const Address to = widest_at(p, f, rows.head, rows.key);
    const float width = simd_max(widest.width), middle = simd_max(widest.middle);
    if (rows.lane == 0) {
        atomic_fetch_max_explicit(write_at<atomic_uint>(to), as_type<uint>(width), memory_order_relaxed);
        atomic_fetch_max_explicit(write_at<atomic_uint>(to + 4), as_type<uint>(middle), memory_order_relaxed);
    }
}

// Units of a head and its parameters of scope segment, by one SIMD-group. grid [n_kv_heads, 2 sides]
template <int Threads>
[[kernel]] void quantize_kv_heads(KERNEL_ARGUMENTS(QuantizeParams)) {
    static_assert(Threads == kLanes, "one SIMD-group");
    device const Format & f = *read_at<Format>(p.rows.format);
    const int head = int(group.x), dim = f.head_dim;
    const bool key = group.y == 0;
    device const Side & side = key ? f.k : f.v;
    if (!fits(p)) {
        return;
    }
    Widest widest;
    device const uint * measured = read_at<uint>(widest_at(p, f, head, key));
    widest.width = as_type<float>(measured[0]);
    widest.middle = as_type<float>(measured[1]);
    for (int i = int(lane_index); i < side.n_sets * dim; i += kLanes) {
        const Range r = shared_range(whole_at(p, f, head, key, i / dim) + ulong(i % dim) * 8);
        widen(widest, widest_of(r, side.kind, side.scope));
    }
    const float width = simd_max(widest.width), mid = simd_max(widest.middle) / 127;
    const float range_unit = side.kind >= kF8Pair ? (width + mid) / 63487 : 0.0f;  // range_of(255)
    const float mid_unit = side.kind >= kF8Pair && side.scope != kScopeToken ? mid : 0.0f;
    if (lane_index == 0) {
        device HeadUnits & units = *write_at<HeadUnits>(p.rows.segment + head_table(f, head) + f.n_tiers * 8);
        if (key) {
            units.k_range = range_unit;
            units.k_mid = mid_unit;
        } else {
            units.v_range = range_unit;
            units.v_mid = mid_unit;
        }
    }
    const SegmentPlaces at = segment_places(f, p.rows.n_tokens, read_at<SegmentHeader>(p.rows.segment)->n_places);
    device uchar * to = write_at<uchar>(p.rows.segment) + (key ? at.k_params : at.v_params) +
                        ulong(head) * side.n_sets * side.set_bytes;
    for (int i = int(lane_index); i < side.n_sets * dim; i += kLanes) {
        const int set = i / dim, c = i % dim;
        const Range r = shared_range(whole_at(p, f, head, key, set) + ulong(c) * 8);
        write_param(side.kind, r, channel_index(c, dim), dim, side.bits[set], range_unit, mid_unit,
                    to + ulong(set) * side.set_bytes);
    }
}

// Tokens' pairs for all heads. grid: blocks of head 0, whose order all heads share; 2 sides
template <int Threads>
[[kernel]] void quantize_kv_shared(KERNEL_ARGUMENTS(QuantizeParams)) {
    device const Format & f = *read_at<Format>(p.rows.format);
    const bool key = group.y == 0;
    device const Side & side = key ? f.k : f.v;
    const FoundBlock b = find_block(f, counts_of(p, f, 0), group.x);
    if (!side.spans_heads || !b.exists || !fits(p)) {
        return;
    }
    const SegmentPlaces at = segment_places(f, p.rows.n_tokens, read_at<SegmentHeader>(p.rows.segment)->n_places);
    device uchar * to = write_at<uchar>(p.rows.segment) + (key ? at.k_shared : at.v_shared) + ulong(b.place) * 4;
    for (int i = int(thread_index); i < b.n_places; i += Threads) {
        write_pair(shared_range(shared_at(p, key, b.place + uint(i))), side.bits[b.tier], to + i * 4);
    }
}

// ---- Codes ----

// A block's own parameters of channels.
template <int D>
inline void write_channel_params(constant QuantizeParams & p, device const Format & f, thread const BlockRows & rows,
                                 thread const ParamReader & reader, device uchar * to) {
    device const Side & side = rows.key ? f.k : f.v;
    Range ranges[(D + 31) / 32];
    channel_ranges<D>(p, f, rows, ranges);
    UNROLL
    for (int i = 0; i < (D + 31) / 32; ++i) {
        const int c = i * kLanes + rows.lane;
        if (c < D) {
            write_param(side.kind, ranges[i], channel_index(c, D), D, side.bits[rows.b.tier], reader.range_unit,
                        reader.mid_unit, to);
        }
    }
}

// And of the tokens of a step.
template <int D>
inline void write_token_params(device const Side & side, thread const BlockRows & rows,
                               thread const ParamReader & reader, int step, device uchar * to) {
    const int n = rows.b.n - step * kStep, n_places = rows.b.n_places, block = side.block;
    for (int i = rows.lane; i < D / block * kStep; i += kLanes) {
        const int place = i % kStep, set = i / kStep;
        if (place < (n + 7) / 8 * 8) {  // those that the CPU's order has
            const Range r = place < n ? token_range<D>(rows, place, set * block, block) : no_range();
            write_param(side.kind, r, set * n_places + place_index(step * kStep + place, n_places), reader.n,
                        side.bits[rows.b.tier], reader.range_unit, 0.0f, to);
        }
    }
}

// Second pass: everything of a block. grid [max_blocks, n_kv_heads, 2 sides]
template <int D>
[[kernel]] void quantize_kv_encode(KERNEL_ARGUMENTS(QuantizeParams)) {
    device const Format & f = *read_at<Format>(p.rows.format);
    const BlockRows rows = rows_at(p, f, group, lane_index, shared);
    if (!rows.b.exists || !fits(p)) {
        return;
    }
    threadgroup float2 * staged = reinterpret_cast<threadgroup float2 *>(shared + row_bytes(D));
    device const Side & side = rows.key ? f.k : f.v;
    const int tier = rows.b.tier, bits = side.bits[tier], scope = side.scope, block = side.block;
    device uchar * segment = write_at<uchar>(p.rows.segment);
    device const uint * table = read_at<uint>(p.rows.segment + head_table(f, rows.head));
    device const HeadUnits & units = *reinterpret_cast<device const HeadUnits *>(table + 2 * f.n_tiers);
    const SegmentPlaces places = segment_places(f, p.rows.n_tokens, read_at<SegmentHeader>(p.rows.segment)->n_places);
    const SidePlaces at = side_places(f, places, rows.head, rows.b, table[f.n_tiers + tier] + rows.b.offset, rows.key);
    const ParamReader reader =
        param_reader(side.kind, at.n, scope, bits, side.shrink[tier], rows.key ? units.k_range : units.v_range,
                     rows.key ? units.k_mid : units.v_mid);
    if (scope == kScopeGroup) {
        write_channel_params<D>(p, f, rows, reader, segment + at.params);
    }
    const float most = float((1 << bits) - 1);
    for (int step = 0; step < steps_of(rows.b.n); ++step) {
        const int n = rows.b.n - step * kStep;
        load_rows<D>(p, f, rows, step);
        if (scope == kScopeToken && !side.spans_heads) {
            write_token_params<D>(side, rows, reader, step, segment + at.params);
        }
        simdgroup_barrier(mem_flags::mem_device);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        if (bits == 0) {
            continue;
        }
        stage_params<D>(reader, segment + at.params, scope, block, rows.b.n_places, step, rows.lane, staged);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        uint regs[D / 8];
        UNROLL
        for (int r = 0; r < D / 8; ++r) {
            regs[r] = 0;
            UNROLL
            for (int j = 0; j < 4; ++j) {
                const CodeSpot spot = rows.key ? key_spot<D>(r, j, rows.lane) : value_spot(r, j, rows.lane);
                const float2 param = staged[staged_at(scope == kScopeToken, spot)];
                const float inverse = param.x != 0 ? 1 / param.x : 0.0f;
                const float exact = (rows.x[spot.place * (D + 1) + spot.channel] - param.y) * inverse;
                const uint code = uint(fmin(fmax(0.0f, exact), most) + 0.5f);
                regs[r] |= spot.place < n ? code << (8 * j) : 0u;
            }
        }
        store_codes<D>(segment + at.codes, bits, rows.b.n_places / kStep, step, rows.lane, regs);
    }
}

}  // namespace gpu
}  // namespace zipcache

#pragma once
// Codes to rows, by one SIMD-group for 16 places of one side of a block.
//
// Bytes: the codes and parameters once, 2 bytes an element out. Threadgroup memory: rows [16][D + 1] f32 and parameters
// [D] f32 x 2: 18.1 KiB at D = 256, so three SIMD-groups a core there, a dozen at D = 64. The rotation is what takes
// time: log2 D passes over the rows in threadgroup memory. It runs once per segment and turn.
#include "metal/rotate.h"
#include "metal/segment.h"

namespace zipcache {
namespace gpu {

// Evicted tokens are written by nobody else. grid [n_tokens, n_kv_heads]
template <int Threads>
[[kernel]] void clear_rows(KERNEL_ARGUMENTS(ClearParams)) {
    const ulong row = (group.y * ulong(p.stride) + group.x) * p.head_dim;
    for (int c = int(thread_index); c < p.head_dim; c += Threads) {
        write_at<half>(p.k)[row + c] = half(0.0f);
        write_at<half>(p.v)[row + c] = half(0.0f);
    }
    if (p.kept && thread_index == 0) {
        write_at<uchar>(p.kept)[ulong(group.y) * p.n_tokens + group.x] = 0;
    }
}

// grid [max_blocks * kBlockSteps, n_kv_heads, 2 sides]
template <int D>
[[kernel]] void dequantize_kv(KERNEL_ARGUMENTS(RowsParams)) {
    device const Format & f = *read_at<Format>(p.format);
    device const uchar * segment = read_at<uchar>(p.segment);
    const int head = int(group.y), step = int(group.x % kBlockSteps), lane = int(lane_index);
    const bool key = group.z == 0;
    device const uint * table = reinterpret_cast<device const uint *>(segment + head_table(f, head));
    const FoundBlock b = find_block(f, table, group.x / kBlockSteps);
    if (!b.exists || step * kStep >= b.n) {
        return;
    }
    device const Side & side = key ? f.k : f.v;
    device const HeadUnits & units = *reinterpret_cast<device const HeadUnits *>(table + 2 * f.n_tiers);
    const uint n_places = reinterpret_cast<device const SegmentHeader *>(segment)->n_places;
    const SegmentPlaces places = segment_places(f, p.n_tokens, n_places);
    const SidePlaces at = side_places(f, places, head, b, table[f.n_tiers + b.tier] + b.offset, key);
    threadgroup float * x = reinterpret_cast<threadgroup float *>(shared);
    threadgroup float2 * staged = reinterpret_cast<threadgroup float2 *>(shared + row_bytes(D));
    const int bits = side.bits[b.tier], scope = side.scope, block = side.block;
    const int n = min(int(kStep), b.n - step * kStep);
    const ParamReader reader = param_reader(side.kind, at.n, scope, bits, side.shrink[b.tier],
                                            key ? units.k_range : units.v_range, key ? units.k_mid : units.v_mid);
    if (bits > 0) {
        stage_params<D>(reader, segment + at.params, scope, block, b.n_places, step, lane, staged);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    uint regs[D / 8];
    load_codes<D>(segment + at.codes, bits, b.n_places / kStep, step, lane, regs);
    UNROLL
    for (int r = 0; r < D / 8; ++r) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
            const CodeSpot spot = key ? key_spot<D>(r, j, lane) : value_spot(r, j, lane);
            float value = 0;
            if (bits > 0) {
                const float2 param = staged[staged_at(scope == kScopeToken, spot)];
                value = param.x * float(regs[r] >> (8 * j) & 255u) + param.y;
            }
            x[spot.place * (D + 1) + spot.channel] = value;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (side.rotate) {
        rotate_rows(x, n, D + 1, D, lane);
    }
    const Address divisors = key ? p.k_divisor : p.v_divisor;
    device half * to = write_at<half>(key ? p.k : p.v) + ulong(head) * p.stride * D;
    device const uint * token = read_at<uint>(p.token) + ulong(f.n_orders == 1 ? 0 : head) * p.max_places + b.place;
    for (int i = lane; i < n * D; i += kLanes) {
        const int place = i / D, c = i % D;
        const float divisor = divisors ? read_at<float>(divisors)[head * D + c] : 1.0f;
        const uint row = token[step * kStep + place];
        to[ulong(row) * D + c] = half(x[place * (D + 1) + c] * divisor);
        if (p.kept && key && c == 0) {
            write_at<uchar>(p.kept)[ulong(head) * p.n_tokens + row] = 1;
        }
    }
}

}  // namespace gpu
}  // namespace zipcache

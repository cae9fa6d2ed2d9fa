#pragma once
// attend_kv: flash-decoding in two dispatches. A threadgroup has one pass (up to 8 query heads of one KV head) of one
// sequence and a run of its units: blocks of segments, and 32 tokens of the window. Its SIMD-groups take units in turn.
// 16 places at a time are decoded to f16 into a tile in threadgroup memory and multiplied by 8 x 8 matrices; output
// stays in registers as 8 x 8 matrices of f32, in the space of its segment. attend_kv_merge then joins the runs.
//
// Segments of a layer may be stored in different spaces (divisors, rotation). Queries lie in threadgroup memory in one
// space of keys: runs of units that share it follow one another, with a barrier between. Output moves between spaces of
// values through the tile; where all segments share one, that happens once.
#include <metal_simdgroup_matrix>

#include "metal/rotate.h"
#include "metal/segment.h"

namespace zipcache {
namespace gpu {

// Where rows are stored as (x / divisor) H.
struct Space {
    Address divisor;  // [D] or 0: ones
    int rotate;
};

inline bool same_space(thread const Space & a, thread const Space & b) {
    return a.divisor == b.divisor && a.rotate == b.rotate;
}

inline Space plain_space() {
    Space s;
    s.divisor = 0;
    s.rotate = 0;
    return s;
}

// Threadgroup memory of one SIMD-group (abi.h has the sizes).
struct AttendMemory {
    threadgroup half * tile;        // keys [16][D + 8]; values [D][16] or, of the window, [16][D + 8]
    threadgroup float * rows;       // the same memory: output [8][D]
    threadgroup float * logits;     // [8][16]; then the factors of the rows [8][8], as a diagonal
    threadgroup half * weights;     // [8][16]
    threadgroup float2 * k_params;  // decoded
    threadgroup float2 * v_params;
    threadgroup half * q;        // [8][D], of all SIMD-groups
    threadgroup float * maxima;  // [SIMD-groups][8]
    threadgroup float * sums;    // [SIMD-groups][8]
};

template <int D>
inline AttendMemory attend_memory(threadgroup uchar * shared, int simd) {
    AttendMemory m;
    threadgroup uchar * own = shared + simd * attend_simdgroup_bytes(D);
    m.tile = reinterpret_cast<threadgroup half *>(own);
    m.rows = reinterpret_cast<threadgroup float *>(own);
    own += attend_tile_bytes(D);
    m.logits = reinterpret_cast<threadgroup float *>(own);
    m.weights = reinterpret_cast<threadgroup half *>(own + 512);
    m.k_params = reinterpret_cast<threadgroup float2 *>(own + 768);
    m.v_params = m.k_params + D;
    threadgroup uchar * all = shared + attend_simdgroups(D) * attend_simdgroup_bytes(D);
    m.q = reinterpret_cast<threadgroup half *>(all);
    m.maxima = reinterpret_cast<threadgroup float *>(all + 8 * D * 2);
    m.sums = m.maxima + attend_simdgroups(D) * 8;
    return m;
}

// What a SIMD-group has added up. A lane has the maximum and the sum of row lane / 4.
template <int D>
struct Sums {
    simdgroup_float8x8 out[D / 8];  // unnormalized, in `space`
    float maximum;                  // of the logits, to base 2
    float sum;                      // of exp2(logit - maximum)
    Space space;
    bool empty;
};

template <int D>
inline void clear(thread Sums<D> & sums) {
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
        sums.out[i] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    sums.maximum = -INFINITY;
    sums.sum = 0;
    sums.space = plain_space();
    sums.empty = true;
}

// Leaves the output in m.rows, in another space.
template <int D>
inline void write_rows(thread const Sums<D> & sums, Space to, thread const AttendMemory & m, int lane) {
    simdgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
        simdgroup_store(sums.out[i], m.rows + 8 * i, D);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (same_space(sums.space, to)) {
        return;
    }
    if (sums.space.rotate) {
        rotate_rows(m.rows, 8, D, D, lane);
    }
    for (int i = lane; i < 8 * D; i += kLanes) {
        const float from = sums.space.divisor ? read_at<float>(sums.space.divisor)[i % D] : 1.0f;
        const float into = to.divisor ? read_at<float>(to.divisor)[i % D] : 1.0f;
        m.rows[i] *= from / into;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (to.rotate) {
        rotate_rows(m.rows, 8, D, D, lane);
    }
}

template <int D>
inline void move_to(Space to, thread const AttendMemory & m, int lane, thread Sums<D> & sums) {
    if (!same_space(sums.space, to) && !sums.empty) {
        write_rows<D>(sums, to, m, lane);
        UNROLL
        for (int i = 0; i < D / 8; ++i) {
            simdgroup_load(sums.out[i], m.rows + 8 * i, D);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }
    sums.space = to;
}

// Queries to m.q in a space of keys, times scale; rows beyond n_rows are zeros. Called by all SIMD-groups, each for
// some of the rows; the tile serves as room for a row.
template <int D>
inline void store_queries(device const float * q, int n_rows, float scale, Space space, thread const AttendMemory & m,
                          int simd, int lane) {
    for (int row = simd; row < 8; row += attend_simdgroups(D)) {
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (int c = lane; c < D; c += kLanes) {
            const float divisor = space.divisor ? read_at<float>(space.divisor)[c] : 1.0f;
            m.rows[c] = row < n_rows ? q[row * D + c] * scale * divisor : 0.0f;
        }
        if (space.rotate) {
            rotate_rows(m.rows, 1, D, D, lane);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (int c = lane; c < D; c += kLanes) {
            m.q[row * D + c] = half(m.rows[c]);
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Logits of the tile's 16 keys, to m.logits.
template <int D>
inline void multiply_keys(thread const AttendMemory & m) {
    simdgroup_float8x8 c[2];
    c[0] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    c[1] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
        simdgroup_half8x8 q, k;
        simdgroup_load(q, m.q + 8 * i, D);
        UNROLL
        for (int half_step = 0; half_step < 2; ++half_step) {
            simdgroup_load(k, m.tile + half_step * 8 * (D + 8) + 8 * i, D + 8, 0, true);
            simdgroup_multiply_accumulate(c[half_step], q, k, c[half_step]);
        }
    }
    simdgroup_store(c[0], m.logits, 16);
    simdgroup_store(c[1], m.logits + 8, 16);
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Softmax over 16 more places: m.logits to m.weights, and what that does to the sums. seen: bit i says whether place
// lane % 4 * 4 + i counts.
template <int D>
inline void take_weights(uint seen, thread const AttendMemory & m, int lane, thread Sums<D> & sums) {
    const int row = lane / 4, first = lane % 4 * 4;
    float s[4];
    float most = sums.maximum;
    UNROLL
    for (int i = 0; i < 4; ++i) {
        s[i] = (seen >> i & 1u) ? m.logits[row * 16 + first + i] : -INFINITY;
        most = max(most, s[i]);
    }
    most = max(most, simd_shuffle_xor(most, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    const float base = most == -INFINITY ? 0.0f : most;  // nothing seen yet
    const float factor = exp2(sums.maximum - base);
    float sum = 0;
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const float weight = exp2(s[i] - base);
        m.weights[row * 16 + first + i] = half(weight);
        sum += weight;
    }
    sum += simd_shuffle_xor(sum, 1);
    sum += simd_shuffle_xor(sum, 2);
    const bool moved = sums.maximum != most && !sums.empty;
    sums.sum = sums.sum * factor + sum;
    sums.maximum = most;
    if (simd_any(moved)) {  // rare: a row's maximum grew
        simdgroup_barrier(mem_flags::mem_threadgroup);
        UNROLL
        for (int i = 0; i < 2; ++i) {
            const int column = lane % 4 * 2 + i;
            m.logits[row * 8 + column] = column == row ? factor : 0.0f;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_float8x8 factors, product;
        simdgroup_load(factors, m.logits, 8);
        UNROLL
        for (int i = 0; i < D / 8; ++i) {
            simdgroup_multiply(product, factors, sums.out[i]);
            sums.out[i] = product;
        }
    }
    sums.empty = false;
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Adds the tile's 16 values. Columns: the tile is [D][16], else [16][D + 8].
template <int D, bool Columns>
inline void multiply_values(thread const AttendMemory & m, thread Sums<D> & sums) {
    simdgroup_half8x8 p[2];
    simdgroup_load(p[0], m.weights, 16);
    simdgroup_load(p[1], m.weights + 8, 16);
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
        UNROLL
        for (int half_step = 0; half_step < 2; ++half_step) {
            simdgroup_half8x8 v;
            if (Columns) {
                simdgroup_load(v, m.tile + 8 * i * 16 + 8 * half_step, 16, 0, true);
            } else {
                simdgroup_load(v, m.tile + 8 * half_step * (D + 8) + 8 * i, D + 8);
            }
            simdgroup_multiply_accumulate(sums.out[i], p[half_step], v, sums.out[i]);
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// ---- Blocks of segments ----

template <int D, bool ByToken>
inline void decode_keys(thread const uint (&regs)[D / 8], thread const AttendMemory & m, int lane) {
    UNROLL
    for (int r = 0; r < D / 8; ++r) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
            const CodeSpot spot = key_spot<D>(r, j, lane);
            const float2 param = m.k_params[staged_at(ByToken, spot)];
            m.tile[spot.place * (D + 8) + spot.channel] = half(fma(param.x, float(regs[r] >> (8 * j) & 255u), param.y));
        }
    }
}

// n: tokens among the 16 places; padding may hold anything, and is zeros here.
template <int D, bool ByToken>
inline void decode_values(thread const uint (&regs)[D / 8], int n, thread const AttendMemory & m, int lane) {
    UNROLL
    for (int r = 0; r < D / 8; ++r) {
        UNROLL
        for (int j = 0; j < 4; ++j) {
            const CodeSpot spot = value_spot(r, j, lane);
            const float2 param = m.v_params[staged_at(ByToken, spot)];
            const float x = fma(param.x, float(regs[r] >> (8 * j) & 255u), param.y);
            m.tile[spot.channel * 16 + spot.place] = half(spot.place < n ? x : 0.0f);
        }
    }
}

// Which of a lane's four places count.
inline uint seen_places(device const HeadRecord & record, uint place, int n, int lane) {
    uint seen = 0;
    UNROLL
    for (int i = 0; i < 4; ++i) {
        const int at = lane % 4 * 4 + i;
        bool sees = at < n;
        if (sees && record.position) {
            const uint token = read_at<ushort>(record.position)[place + uint(at)];
            sees = token >= record.first_seen && token < record.last_seen;
        }
        seen |= (sees ? 1u : 0u) << i;
    }
    return seen;
}

template <int D>
inline void add_block(device const BlockRef & ref, device const HeadRecord & record, thread const AttendMemory & m,
                      int lane, thread Sums<D> & sums) {
    const int tier = ref.tier, n_steps = steps_of(ref.n), k_bits = ref.k_bits, v_bits = ref.v_bits;
    const int k_scope = record.k_scope, k_block = record.k_block, v_scope = record.v_scope, v_block = record.v_block;
    device const uchar * k_codes = read_at<uchar>(ref.data);
    device const uchar * v_codes = k_codes + ref.v_codes;
    const int n_places = n_steps * kStep;
    const ParamReader k_reader =
        param_reader(record.k_kind, k_scope == kScopeToken ? D / k_block * n_places : D, k_scope, k_bits,
                     record.k_shrink[tier], record.units.k_range, record.units.k_mid);
    const ParamReader v_reader =
        param_reader(record.v_kind, v_scope == kScopeToken ? D / v_block * n_places : D, v_scope, v_bits,
                     record.v_shrink[tier], record.units.v_range, record.units.v_mid);
    Space values;
    values.divisor = record.v_divisor;
    values.rotate = record.v_rotate;
    move_to<D>(values, m, lane, sums);
    for (int step = 0; step < n_steps; ++step) {
        const int n = min(int(kStep), int(ref.n) - step * kStep);
        uint k[D / 8], v[D / 8];
        load_codes<D>(k_codes, k_bits, n_steps, step, lane, k);
        load_codes<D>(v_codes, v_bits, n_steps, step, lane, v);
        if (step == 0 || k_scope == kScopeToken) {
            stage_params<D>(k_reader, read_at<uchar>(ref.k_params), k_scope, k_block, n_places, step, lane, m.k_params);
        }
        if (v_bits > 0 && (step == 0 || v_scope == kScopeToken)) {
            stage_params<D>(v_reader, read_at<uchar>(ref.v_params), v_scope, v_block, n_places, step, lane, m.v_params);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        if (k_scope == kScopeToken) {
            decode_keys<D, true>(k, m, lane);
        } else {
            decode_keys<D, false>(k, m, lane);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        multiply_keys<D>(m);
        take_weights<D>(seen_places(record, ref.place + uint(step * kStep), n, lane), m, lane, sums);
        if (v_bits == 0) {
            continue;
        }
        if (v_scope == kScopeToken) {
            decode_values<D, true>(v, n, m, lane);
        } else {
            decode_values<D, false>(v, n, m, lane);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        multiply_values<D, true>(m, sums);
    }
}

// ---- The window ----

// Rows [first, first + 16) to the tile; those from `last` on as zeros.
template <int D>
inline void copy_rows(device const half * rows, int first, int last, thread const AttendMemory & m, int lane) {
    for (int i = lane; i < 16 * (D / 8); i += kLanes) {
        const int row = i / (D / 8), chunk = i % (D / 8);
        uint4 x = 0u;
        if (first + row < last) {
            x = *reinterpret_cast<device const uint4 *>(rows + ulong(first + row) * D + chunk * 8);
        }
        *reinterpret_cast<threadgroup uint4 *>(m.tile + row * (D + 8) + chunk * 8) = x;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Tokens [first, last) of the window, at most kWindowTokens.
template <int D>
inline void add_window(device const half * k, device const half * v, int first, int last, thread const AttendMemory & m,
                       int lane, thread Sums<D> & sums) {
    move_to<D>(plain_space(), m, lane, sums);
    for (; first < last; first += kStep) {
        copy_rows<D>(k, first, last, m, lane);
        multiply_keys<D>(m);
        const int n = min(last - first - lane % 4 * 4, 4);
        take_weights<D>(n > 0 ? (1u << n) - 1 : 0u, m, lane, sums);
        copy_rows<D>(v, first, last, m, lane);
        multiply_values<D, false>(m, sums);
    }
}

// ---- A run of units ----

// What a threadgroup works on.
struct Pass {
    int head, row, n_rows;  // KV head; the first query head, how many
    int first_token, n_tokens;
    int window_units, n_units;
    device const BlockRef * blocks;     // [n_blocks] of the head
    device const HeadRecord * records;  // of the head: one in n_kv_heads
};

// number: of the pass among those of a sequence.
inline Pass pass_of(constant AttendParams & p, device const Sequence & s, int number) {
    Pass pass;
    const int heads = p.n_heads / p.n_kv_heads;
    pass.head = number / p.n_passes;
    const int first = number % p.n_passes * kRows;
    pass.row = pass.head * heads + first;
    pass.n_rows = min(int(kRows), heads - first);
    pass.n_tokens = *read_at<int>(s.n_tokens);
    pass.first_token = p.sliding_window > 0 ? max(0, pass.n_tokens - p.sliding_window) : 0;
    pass.window_units = (pass.n_tokens - pass.first_token + kWindowTokens - 1) / kWindowTokens;
    pass.n_units = pass.window_units;
    pass.blocks = nullptr;
    pass.records = nullptr;
    if (s.index && pass.n_tokens > 0) {
        device const IndexHeader & index = *read_at<IndexHeader>(s.index);
        pass.n_units += int(read_at<uint>(index.n_blocks)[pass.head]);
        pass.blocks = read_at<BlockRef>(index.blocks) + ulong(pass.head) * index.max_blocks;
        pass.records = read_at<HeadRecord>(index.records) + pass.head;
    }
    return pass;
}

// Joins what the SIMD-groups of a threadgroup have, and leaves it in `to` [8][D + 2].
template <int D>
inline void write_partial(thread const Sums<D> & sums, int n_rows, thread const AttendMemory & m, int simd, int lane,
                          threadgroup uchar * shared, device float * to) {
    constexpr int n_simds = attend_simdgroups(D);
    write_rows<D>(sums, plain_space(), m, lane);
    if (lane % 4 == 0) {
        m.maxima[simd * 8 + lane / 4] = sums.maximum;
        m.sums[simd * 8 + lane / 4] = sums.sum;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = simd * kLanes + lane; i < n_rows * D; i += n_simds * kLanes) {
        const int row = i / D, c = i % D;
        float top = -INFINITY;
        for (int s = 0; s < n_simds; ++s) {
            top = max(top, m.maxima[s * 8 + row]);
        }
        const float base = top == -INFINITY ? 0.0f : top;
        float out = 0, sum = 0;
        for (int s = 0; s < n_simds; ++s) {
            const float weight = exp2(m.maxima[s * 8 + row] - base);
            sum = fma(weight, m.sums[s * 8 + row], sum);
            out = fma(weight, attend_memory<D>(shared, s).rows[i], out);
        }
        to[row * (D + 2) + c] = out;
        if (c == 0) {
            to[row * (D + 2) + D] = top;
            to[row * (D + 2) + D + 1] = sum;
        }
    }
}

// grid [n_splits, n_kv_heads * n_passes, n_sequences]
template <int D>
[[kernel]] void attend_kv(KERNEL_ARGUMENTS(AttendParams)) {
    constexpr int n_simds = attend_simdgroups(D);
    const int simd = int(simd_index), lane = int(lane_index);
    device const Sequence & s = read_at<Sequence>(p.sequences)[group.z];
    const Pass pass = pass_of(p, s, int(group.y));
    const AttendMemory m = attend_memory<D>(shared, simd);
    device const float * q = read_at<float>(p.q) + (ulong(group.z) * p.n_heads + pass.row) * D;
    const ulong window = ulong(pass.head) * ulong(s.capacity) * D;
    const int last = int(ulong(pass.n_units) * (group.x + 1) / p.n_splits);
    int unit = int(ulong(pass.n_units) * group.x / p.n_splits);
    Sums<D> sums;
    clear<D>(sums);
    while (unit < last) {  // units whose keys share a space
        const bool is_window = unit < pass.window_units;
        Space keys = plain_space();
        int end = pass.window_units;
        if (!is_window) {
            device const BlockRef & ref = pass.blocks[unit - pass.window_units];
            device const HeadRecord & record = pass.records[ulong(ref.segment) * p.n_kv_heads];
            keys.divisor = record.k_divisor;
            keys.rotate = record.k_rotate;
            end += int(ref.run_end);
        }
        end = min(end, last);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        store_queries<D>(q, pass.n_rows, p.scale * 1.44269504f, keys, m, simd, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (int i = unit + simd; i < end; i += n_simds) {
            if (is_window) {
                const int first = pass.first_token + i * kWindowTokens;
                add_window<D>(read_at<half>(s.k) + window, read_at<half>(s.v) + window, first,
                              min(pass.n_tokens, first + kWindowTokens), m, lane, sums);
            } else {
                device const BlockRef & ref = pass.blocks[i - pass.window_units];
                add_block<D>(ref, pass.records[ulong(ref.segment) * p.n_kv_heads], m, lane, sums);
            }
        }
        unit = end;
    }
    const ulong item = ulong(group.z) * p.n_kv_heads * p.n_passes + group.y;
    write_partial<D>(sums, pass.n_rows, m, simd, lane, shared,
                     write_at<float>(p.partial) + (item * p.n_splits + group.x) * kRows * (D + 2));
}

// Joins the runs of a pass, and writes its results. grid [n_kv_heads * n_passes, n_sequences]
template <int Threads>
[[kernel]] void attend_kv_merge(KERNEL_ARGUMENTS(AttendParams)) {
    device const Sequence & s = read_at<Sequence>(p.sequences)[group.y];
    const Pass pass = pass_of(p, s, int(group.x));
    const int dim = p.head_dim, stride = dim + 2;
    const int slot = s.probe_slot && pass.n_tokens > 0 ? read_at<int>(s.probe_slot)[pass.n_tokens - 1] : -1;
    const ulong item = ulong(group.y) * p.n_kv_heads * p.n_passes + group.x;
    device const float * parts = read_at<float>(p.partial) + item * p.n_splits * kRows * stride;
    const ulong first = (ulong(group.y) * p.n_heads + pass.row) * dim;
    for (int i = int(thread_index); i < pass.n_rows * dim; i += Threads) {
        const int row = i / dim, c = i % dim;
        float top = -INFINITY;
        for (int k = 0; k < p.n_splits; ++k) {
            top = max(top, parts[(k * kRows + row) * stride + dim]);
        }
        const float base = top == -INFINITY ? 0.0f : top;
        float out = 0, sum = 0;
        for (int k = 0; k < p.n_splits; ++k) {
            device const float * part = parts + (k * kRows + row) * stride;
            const float weight = exp2(part[dim] - base);
            sum = fma(weight, part[dim + 1], sum);
            out = fma(weight, part[c], out);
        }
        write_at<float>(p.out)[first + i] = sum > 0 ? out / sum : 0.0f;
        if (slot >= 0) {
            const ulong at = ulong(slot) * p.n_heads + pass.row;
            write_at<half>(s.probe_q)[at * dim + i] = half(read_at<float>(p.q)[first + i]);
            if (c == 0) {
                write_at<float>(s.probe_log_sum)[at + row] = (base + log2(sum)) / 1.44269504f;
            }
        }
    }
}

}  // namespace gpu
}  // namespace zipcache

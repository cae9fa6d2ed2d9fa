#pragma once
// Attention of the probes, never as a matrix: one pass finds each row's log-sum-exp, another adds up the columns. A row
// is one query head of one probe: number probe * group + head in the group. Both passes multiply tiles of 32 rows by 32
// tokens as 8 x 8 matrices of f16 with f32 sums, four SIMD-groups with 8 rows each.
//
// Work: 2 passes of n_rows * n_tokens / 2 * 2 D operations a KV head; bytes are few beside it: a pass reads keys
// (first) or rows (second) once for 32 of the other, 2 D / 32 bytes a product of 2 D operations. Expected to be bound
// by the multiplication, at about a third of its peak: tiles are small, and each waits for its exp2. Threadgroup
// memory: keys [32][D + 8] f16 and logits [32][32] f32: 21 KiB at D = 256, 8.5 KiB at D = 64.
#include <metal_simdgroup_matrix>

#include "metal/memory.h"

namespace zipcache {
namespace gpu {

enum : int { kScoreSimds = kScoreRows / 8 };

// The probes' query heads as f16, and what they see. grid [n_padded, n_kv_heads]
template <int Threads>
[[kernel]] void score_probes_prepare(KERNEL_ARGUMENTS(ScoreParams)) {
    const int row = int(group.x), head = int(group.y), dim = p.head_dim, heads = p.n_heads / p.n_kv_heads;
    const int probe = row / heads;
    const bool used = row < p.n_rows;
    const ulong from = (ulong(probe) * p.n_heads + head * heads + row % heads) * dim;
    for (int c = int(thread_index); c < dim; c += Threads) {
        write_at<half>(p.rows)[(ulong(head) * p.n_padded + row) * dim + c] =
            half(used ? read_at<float>(p.q)[from + c] : 0.0f);
    }
    if (head == 0 && thread_index == 0) {
        const int last = used ? int(read_at<int64_t>(p.position)[probe]) + 1 : 0;
        write_at<int>(p.seen)[row * 2] = used && p.sliding_window > 0 ? max(0, last - p.sliding_window) : 0;
        write_at<int>(p.seen)[row * 2 + 1] = min(last, p.n_tokens);
    }
}

// Keys [first, first + 32) to the tile; those beyond n_tokens as zeros. All threads of the threadgroup.
template <int D>
inline void load_keys(constant ScoreParams & p, int head, int first, int index, threadgroup half * tile) {
    device const half * keys = read_at<half>(p.k) + ulong(head) * ulong(p.k_stride) * D;
    for (int i = index; i < kScoreTokens * (D / 8); i += score_threads()) {
        const int row = i / (D / 8), chunk = i % (D / 8);
        uint4 x = 0u;
        if (first + row < p.n_tokens) {
            x = *reinterpret_cast<device const uint4 *>(keys + ulong(first + row) * D + chunk * 8);
        }
        *reinterpret_cast<threadgroup uint4 *>(tile + row * (D + 8) + chunk * 8) = x;
    }
}

// Products of a SIMD-group's 8 rows and the tile's tokens, to logits [8][32].
template <int D>
inline void multiply_tile(device const half * rows, threadgroup const half * tile, threadgroup float * logits) {
    simdgroup_float8x8 c[kScoreTokens / 8];
    UNROLL
    for (int j = 0; j < kScoreTokens / 8; ++j) {
        c[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    UNROLL
    for (int i = 0; i < D / 8; ++i) {
        simdgroup_half8x8 q, k;
        simdgroup_load(q, rows + 8 * i, D);
        UNROLL
        for (int j = 0; j < kScoreTokens / 8; ++j) {
            simdgroup_load(k, tile + j * 8 * (D + 8) + 8 * i, D + 8, 0, true);
            simdgroup_multiply_accumulate(c[j], q, k, c[j]);
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    UNROLL
    for (int j = 0; j < kScoreTokens / 8; ++j) {
        simdgroup_store(c[j], logits + 8 * j, kScoreTokens);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

// First pass. grid [n_padded / kScoreRows, n_kv_heads]
template <int D>
[[kernel]] void score_probes_rows(KERNEL_ARGUMENTS(ScoreParams)) {
    static_assert(score_threadgroup_bytes(D) <= kMaxThreadgroupBytes, "threadgroup memory");
    const int head = int(group.y), lane = int(lane_index), first_row = int(group.x) * kScoreRows;
    threadgroup half * tile = reinterpret_cast<threadgroup half *>(shared);
    threadgroup float * logits =
        reinterpret_cast<threadgroup float *>(shared + score_tile_bytes(D)) + int(simd_index) * 8 * kScoreTokens;
    const float scale = p.scale * 1.44269504f;
    device const int * seen = read_at<int>(p.seen);
    int low = p.n_tokens, high = 0;  // what any row sees
    for (int i = first_row; i < first_row + kScoreRows; ++i) {
        low = seen[i * 2 + 1] > 0 ? min(low, seen[i * 2]) : low;
        high = max(high, seen[i * 2 + 1]);
    }
    const ulong strip = ulong(head) * p.n_padded + first_row + int(simd_index) * 8;
    const int row = first_row + int(simd_index) * 8 + lane / 4;
    const int from = seen[row * 2], to = seen[row * 2 + 1];
    float maximum = -INFINITY, sum = 0;
    for (int token = low / kScoreTokens * kScoreTokens; token < high; token += kScoreTokens) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        load_keys<D>(p, head, token, int(thread_index), tile);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        multiply_tile<D>(read_at<half>(p.rows) + strip * D, tile, logits);
        for (int i = lane % 4; i < kScoreTokens; i += 4) {
            if (token + i >= from && token + i < to) {
                const float logit = logits[lane / 4 * kScoreTokens + i] * scale;
                const float most = max(maximum, logit);
                sum = sum * exp2(maximum - most) + exp2(logit - most);
                maximum = most;
            }
        }
    }
    float most = max(maximum, simd_shuffle_xor(maximum, 1));
    most = max(most, simd_shuffle_xor(most, 2));
    sum = most > -INFINITY ? sum * exp2(maximum - most) : 0.0f;
    sum += simd_shuffle_xor(sum, 1);
    sum += simd_shuffle_xor(sum, 2);
    if (lane % 4 == 0) {
        write_at<float>(p.log_sum)[strip + lane / 4] = sum > 0 ? most + log2(sum) : INFINITY;
    }
}

// Second pass. A lane has a token of 32, for its SIMD-group's rows. grid [n_tokens / kScoreTokens, n_kv_heads]
template <int D>
[[kernel]] void score_probes_columns(KERNEL_ARGUMENTS(ScoreParams)) {
    const int head = int(group.y), lane = int(lane_index), simd = int(simd_index);
    const int first_token = int(group.x) * kScoreTokens, token = first_token + lane;
    threadgroup half * tile = reinterpret_cast<threadgroup half *>(shared);
    threadgroup float * all_logits = reinterpret_cast<threadgroup float *>(shared + score_tile_bytes(D));
    threadgroup float * logits = all_logits + simd * 8 * kScoreTokens;
    const float scale = p.scale * 1.44269504f;
    device const int * seen = read_at<int>(p.seen);
    load_keys<D>(p, head, first_token, int(thread_index), tile);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float score = 0, square = 0;
    for (int first = simd * 8; first < p.n_padded; first += kScoreRows) {
        const int own = first + lane % 8;
        if (!simd_any(seen[own * 2] < first_token + kScoreTokens && seen[own * 2 + 1] > first_token)) {
            continue;
        }
        const ulong strip = ulong(head) * p.n_padded + first;
        multiply_tile<D>(read_at<half>(p.rows) + strip * D, tile, logits);
        for (int i = 0; i < 8; ++i) {
            const int row = first + i;
            const bool sees = token >= seen[row * 2] && token < seen[row * 2 + 1];
            const float log_sum = read_at<float>(p.log_sum)[strip + i];
            const float weight = sees ? exp2(logits[i * kScoreTokens + lane] * scale - log_sum) : 0.0f;
            score += weight;
            square += weight * weight;
        }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    logits[lane] = score;
    logits[kScoreTokens + lane] = square;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simd < 2 && token < p.n_tokens) {  // the first adds up the scores, the second the squares
        float total = 0;
        for (int i = 0; i < kScoreSimds; ++i) {
            total += all_logits[(i * 8 + simd) * kScoreTokens + lane];
        }
        write_at<float>(simd == 0 ? p.score : p.square)[ulong(head) * p.n_tokens + token] += total;
    }
}

}  // namespace gpu
}  // namespace zipcache

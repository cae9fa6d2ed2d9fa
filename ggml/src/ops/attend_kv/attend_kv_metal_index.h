#pragma once
// index_kv and append_kv.
#include "metal/segment.h"

namespace zipcache {
namespace gpu {

inline int n_segments(constant IndexParams & p) {
    return max(0, min(*read_at<int>(p.n_segments), p.max_segments));
}

inline device const Segment & segment_at(constant IndexParams & p, int i) {
    return read_at<Segment>(p.segments)[i];
}

// Whether keys of two segments are stored in one space.
inline bool same_keys(device const Segment & a, device const Segment & b) {
    return a.k_divisor == b.k_divisor && read_at<Format>(a.format)->k.rotate == read_at<Format>(b.format)->k.rotate;
}

inline void write_record(device const Segment & s, int head, device HeadRecord & r) {
    device const Format & f = *read_at<Format>(s.format);
    const ulong channels = ulong(head) * f.head_dim * 4;
    device const HeadUnits & units =
        *reinterpret_cast<device const HeadUnits *>(read_at<uchar>(s.data) + head_table(f, head) + f.n_tiers * 8);
    r.k_divisor = s.k_divisor ? s.k_divisor + channels : 0;
    r.v_divisor = s.v_divisor ? s.v_divisor + channels : 0;
    r.position = s.position ? s.position + ulong(head) * s.max_places * 2 : 0;
    r.first_seen = uint(s.first_seen);
    r.last_seen = uint(s.last_seen);
    r.units.k_range = units.k_range;
    r.units.k_mid = units.k_mid;
    r.units.v_range = units.v_range;
    r.units.v_mid = units.v_mid;
    r.k_rotate = f.k.rotate;
    r.v_rotate = f.v.rotate;
    r.k_scope = f.k.scope;
    r.k_kind = f.k.kind;
    r.k_block = f.k.block;
    r.v_scope = f.v.scope;
    r.v_kind = f.v.kind;
    r.v_block = f.v.block;
    for (int t = 0; t < kMaxTiers; ++t) {
        r.k_shrink[t] = f.k.shrink[t];
        r.v_shrink[t] = f.v.shrink[t];
    }
}

// A threadgroup a head: the records of its segments, how many blocks come before each, where runs of keys end.
template <int Threads>
[[kernel]] void index_kv_segments(KERNEL_ARGUMENTS(IndexParams)) {
    const int head = int(group.x), n = n_segments(p), index = int(thread_index);
    device uint * before = write_at<uint>(p.before) + ulong(head) * (p.max_segments + 1);
    device uint * run_end = write_at<uint>(p.run_end) + ulong(head) * p.max_segments;
    for (int s = index; s < n; s += Threads) {
        device const Segment & segment = segment_at(p, s);
        device const Format & f = *read_at<Format>(segment.format);
        device const uint * counts =
            reinterpret_cast<device const uint *>(read_at<uchar>(segment.data) + head_table(f, head));
        uint blocks = 0;
        for (int t = 0; t < f.n_tiers; ++t) {
            blocks += tier_blocks(f, t, counts[t]);
        }
        before[s + 1] = blocks;
        write_record(segment, head, write_at<HeadRecord>(p.records)[ulong(s) * p.n_kv_heads + head]);
    }
    threadgroup_barrier(mem_flags::mem_device);
    if (index != 0) {
        return;
    }
    uint sum = 0;
    before[0] = 0;
    for (int s = 0; s < n; ++s) {
        before[s + 1] = sum += before[s + 1];
    }
    for (int s = n - 1; s >= 0; --s) {
        const bool goes_on = s + 1 < n && same_keys(segment_at(p, s), segment_at(p, s + 1));
        run_end[s] = goes_on ? run_end[s + 1] : before[s + 1];
    }
    write_at<uint>(p.n_blocks)[head] = min(sum, uint(p.max_blocks));
    if (head == 0) {
        device IndexHeader & header = *write_at<IndexHeader>(p.header);
        header.n_blocks = p.n_blocks;
        header.records = p.records;
        header.blocks = p.blocks;
        header.max_blocks = uint(p.max_blocks);
    }
}

inline void write_ref(constant IndexParams & p, int head, int s, uint number, device BlockRef & ref) {
    device const Segment & segment = segment_at(p, s);
    device const Format & f = *read_at<Format>(segment.format);
    device const uchar * data = read_at<uchar>(segment.data);
    device const uint * table = reinterpret_cast<device const uint *>(data + head_table(f, head));
    device const SegmentHeader & header = *reinterpret_cast<device const SegmentHeader *>(data);
    const FoundBlock b = find_block(f, table, number);
    const SegmentPlaces places = segment_places(f, int(header.n_tokens), header.n_places);
    const ulong offset = table[f.n_tiers + b.tier] + b.offset;
    ref.data = segment.data + offset;
    ref.k_params = segment.data + side_places(f, places, head, b, offset, true).params;
    ref.v_params = segment.data + side_places(f, places, head, b, offset, false).params;
    ref.place = b.place;
    ref.v_codes = uint(block_places(f, b.tier, b.n).v_codes);
    ref.run_end = read_at<uint>(p.run_end)[ulong(head) * p.max_segments + s];
    ref.segment = ushort(s);
    ref.tier = uchar(b.tier);
    ref.n = uchar(b.n);
    ref.k_bits = uchar(f.k.bits[b.tier]);
    ref.v_bits = uchar(f.v.bits[b.tier]);
}

// A thread a block; grid.y: the KV head.
template <int Threads>
[[kernel]] void index_kv_blocks(KERNEL_ARGUMENTS(IndexParams)) {
    const int head = int(group.y), n = n_segments(p);
    const uint number = group.x * Threads + thread_index;
    if (n == 0 || number >= read_at<uint>(p.n_blocks)[head]) {
        return;
    }
    device const uint * before = read_at<uint>(p.before) + ulong(head) * (p.max_segments + 1);
    int low = 0, high = n;  // the last segment that begins at or before the block
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (before[middle] <= number) {
            low = middle;
        } else {
            high = middle;
        }
    }
    write_ref(p, head, low, number - before[low], write_at<BlockRef>(p.blocks)[ulong(head) * p.max_blocks + number]);
}

// grid [n_kv_heads, n_sequences]
template <int Threads>
[[kernel]] void append_kv(KERNEL_ARGUMENTS(AppendParams)) {
    device const Sequence & s = read_at<Sequence>(p.sequences)[group.y];
    const int n = *read_at<int>(s.n_tokens);
    const ulong from = (ulong(group.y) * p.n_kv_heads + group.x) * p.head_dim;
    const ulong to = (ulong(group.x) * ulong(s.capacity) + ulong(n) - 1) * p.head_dim;
    for (int c = int(thread_index); n > 0 && c < p.head_dim; c += Threads) {
        write_at<half>(s.k)[to + c] = half(read_at<float>(p.k)[from + c]);
        write_at<half>(s.v)[to + c] = half(read_at<float>(p.v)[from + c]);
    }
}

}  // namespace gpu
}  // namespace zipcache

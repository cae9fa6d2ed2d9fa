#pragma once
// A case of attend_sample.h in buffers, attended to by the kernels.
#include <cstdint>

#include "attend_sample.h"
#include "buffers.h"
#include "ggml-zipcache-cuda.h"
#include "metal/abi.h"

// What a case has in buffers.
struct OnDevice {
    ggml_zipcache_metal_attend_args args = {};
    std::vector<int32_t *> n_tokens;
    std::vector<const uint16_t *> probe_q;
    std::vector<const float *> probe_log_sum;
    std::vector<ggml_zipcache_metal_address> indexes;  // 0 where there is none
    float * out = nullptr;
    ggml_zipcache_metal_address workspace = 0;
};

inline ggml_zipcache_metal_segment put_segment(Buffers & buffers, const Sequence & s, size_t i) {
    const Sample & x = s.samples[i];
    std::vector<uint8_t> bytes(ggml_zipcache_cuda_bytes_of_cpu(&x.format, x.segment.data()));
    ggml_zipcache_cuda_from_cpu(&x.format, x.segment.data(), bytes.data());
    ggml_zipcache_metal_segment segment = {};
    segment.format = buffers.send(x.format);
    segment.data = buffers.send(bytes);
    segment.k_divisor = buffers.send(x.k_divisor);
    segment.v_divisor = buffers.send(x.v_divisor);
    if (s.segments[i].position) {
        const auto encoder = emulator::encoder();
        segment.max_places = int32_t(ggml_zipcache_cuda_max_places(&x.format, x.n_tokens));
        segment.position = Buffers::address(buffers.room<uint16_t>(x.format.n_kv_heads * segment.max_places));
        segment.first_seen = int32_t(s.segments[i].first_seen);
        segment.last_seen = int32_t(s.segments[i].last_seen);
        ggml_zipcache_metal_rows rows = {};
        rows.format = segment.format;
        rows.n_tokens = x.n_tokens;
        auto * work = buffers.room<uint8_t>(ggml_zipcache_metal_dequantize_kv_workspace(&x.format, x.n_tokens));
        check_op(ggml_zipcache_metal_positions(&x.format, &rows, segment.data, segment.position, Buffers::address(work),
                                               &encoder));
    }
    return segment;
}

inline ggml_zipcache_metal_address put_index(Buffers & buffers, const Case & c, const Sequence & s) {
    std::vector<ggml_zipcache_metal_segment> segments;
    int32_t max_blocks = 0;
    for (size_t i = 0; i < s.samples.size(); ++i) {
        const Sample & x = s.samples[i];
        segments.push_back(put_segment(buffers, s, i));
        if (i > 0 && x.k_divisor == s.samples[0].k_divisor) {
            segments[i].k_divisor = segments[0].k_divisor;
            segments[i].v_divisor = segments[0].v_divisor;
        }
        max_blocks += int32_t(ggml_zipcache_cuda_max_blocks(&x.format, x.n_tokens));
    }
    const auto n = int32_t(segments.size()), spare = 2;
    segments.resize(n + spare);
    auto * index = buffers.room<uint8_t>(ggml_zipcache_metal_index_bytes(c.shape.n_kv_heads, n + spare, max_blocks));
    const ggml_zipcache_metal_index_args args = {c.shape.n_kv_heads,
                                                 c.shape.head_dim,
                                                 n + spare,
                                                 max_blocks,
                                                 buffers.send(segments),
                                                 buffers.send(std::vector<int32_t>{n}),
                                                 Buffers::address(index)};
    const auto encoder = emulator::encoder();
    check_op(ggml_zipcache_metal_index_kv(&args, &encoder));
    return args.index;
}

inline OnDevice put_case(Buffers & buffers, const Case & c, int n_groups) {
    OnDevice d;
    std::vector<ggml_zipcache_metal_sequence> sequences;
    for (const Sequence & s : c.sequences) {
        std::vector<int32_t> slots(s.capacity, -1);
        slots[std::max(0, s.n_tokens - 1)] = 1;
        d.n_tokens.push_back(buffers.put(std::vector<int32_t>{s.n_tokens}));
        d.probe_q.push_back(buffers.room<uint16_t>(2 * c.n_heads() * c.shape.head_dim));
        d.probe_log_sum.push_back(buffers.room<float>(2 * c.n_heads()));
        const bool indexed = !s.samples.empty() || s.n_tokens % 2;
        d.indexes.push_back(indexed ? put_index(buffers, c, s) : 0);
        sequences.push_back({buffers.send(s.k), buffers.send(s.v), Buffers::address(d.n_tokens.back()),
                             d.indexes.back(), buffers.send(slots), Buffers::address(d.probe_q.back()),
                             Buffers::address(d.probe_log_sum.back()), s.capacity});
    }
    d.out = buffers.room<float>(c.q.size());
    d.args = {
        int32_t(sequences.size()), c.n_heads(), c.shape.n_kv_heads,      c.shape.head_dim,  c.scale,
        c.shape.sliding_window,    n_groups,    buffers.send(sequences), buffers.send(c.q), Buffers::address(d.out)};
    d.workspace = Buffers::address(buffers.room<uint8_t>(ggml_zipcache_metal_attend_kv_workspace(&d.args)));
    return d;
}

inline void attend(const Case & c, const OnDevice & d, Difference & worst) {
    const auto encoder = emulator::encoder();
    check_op(ggml_zipcache_metal_attend_kv(&d.args, d.workspace, &encoder));
    for (size_t i = 0; i < c.sequences.size(); ++i) {
        compare(c, i, {d.out + i * c.n_heads() * c.shape.head_dim, d.probe_q[i], d.probe_log_sum[i]}, worst);
    }
}

#include "metal/codec.h"

#include <algorithm>

#include "common/error.h"

namespace zipcache::metal {

template <class T>
Bytes MetalCodec::put(const std::vector<T> & values) const {
    Bytes memory(device_, values.size() * sizeof(T));
    if (!values.empty()) {
        device_.write(memory.as(), values.data(), memory.size());
    }
    return memory;
}

// score_rows() of probes whose keys are all at hand.
Scores MetalCodec::score(const Rows & rows, int64_t first, int64_t n, const Probes & probes) const {
    const size_t n_bytes = h_.n_kv_heads * rows.n * sizeof(float);
    const Bytes position = put(probes.row);
    Bytes score(device_, n_bytes), square(device_, n_bytes);
    score.clear();
    square.clear();
    const ggml_zipcache_metal_probes args = {h_.n_heads,
                                             h_.n_kv_heads,
                                             h_.head_dim,
                                             h_.attention_scale,
                                             rows.sliding_window,
                                             static_cast<int32_t>(probes.size()),
                                             rows.n,
                                             rows.stride,
                                             device_.address(rows.k),
                                             device_.address(position.as()),
                                             device_.address(probes.q),
                                             device_.address(score.as()),
                                             device_.address(square.as())};
    const auto lock = device_.turn();
    const auto workspace = device_.workspace(ggml_zipcache_metal_score_probes_workspace(&args));
    check(ggml_zipcache_metal_score_probes(&args, workspace, device_.encoder()), "score_probes");
    device_.settle();
    Scores scores = {n, {}, {}, count_seen(rows, first, n, probes)};
    for (int head = 0; head < h_.n_kv_heads; ++head) {
        for (auto [from, to] : {std::pair(&score, &scores.score), std::pair(&square, &scores.square)}) {
            const float * all = from->as<float>() + head * rows.n;
            to->insert(to->end(), all + first, all + first + n);
        }
    }
    return scores;
}

void MetalCodec::quantize(Segment & s, const Rows & rows, int64_t first, const std::vector<uint8_t> & tiers) const {
    const ggml_zipcache_format & f = *s.format;
    std::vector<uint32_t> counts(f.n_tiers * (tiers.size() / s.n_tokens));  // [n_orders, n_tiers]
    for (size_t i = 0; i < tiers.size(); ++i) {
        ++counts[i / s.n_tokens * f.n_tiers + tiers[i]];
    }
    s.device_data = Bytes(device_, ggml_zipcache_cuda_segment_bytes(&f, s.n_tokens, counts.data()));
    const Bytes tier = put(tiers);
    ggml_zipcache_metal_rows args = {};
    args.format = device_.format(f);
    args.n_tokens = s.n_tokens;
    args.stride = rows.stride;
    args.k = device_.address(rows.k + first * h_.head_dim);
    args.v = device_.address(rows.v + first * h_.head_dim);
    args.k_divisor = device_.address(keys_divisor(s));
    args.v_divisor = device_.address(values_divisor(s));
    args.tier = device_.address(tier.as());
    const auto lock = device_.turn();
    const auto workspace = device_.workspace(ggml_zipcache_metal_quantize_kv_workspace(&f, s.n_tokens));
    check(ggml_zipcache_metal_quantize_kv(&f, &args, device_.address(s.device_data.as()), s.device_data.size(),
                                          workspace, device_.encoder()),
          "quantize_kv");
    device_.settle();
    const char * error =
        ggml_zipcache_cuda_segment_error(&f, s.n_tokens, s.device_data.as<const uint8_t>(), s.device_data.size());
    if (error) {
        throw ModelError(std::string("Metal: quantize_kv made no segment: ") + error);
    }
    set_view(s);
}

std::shared_ptr<Segment> MetalCodec::compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                              const Probes & probes, std::shared_ptr<const Balance> balance,
                                              const Parallel & parallel) const {
    const bool is_prefill = probes.size() > 0 && probes.log_sum.empty();
    auto scores = [&] {
        return is_prefill ? score(rows, first, n, probes) : score_rows(rows, first, n, probes, h_, parallel);
    };
    Compression c = compressor_.plan(layer, rows, first, n, probes, std::move(balance), scores, parallel);
    if (c.learned) {
        send(*c.learned);
    }
    c.segment->device_divisors = put(c.segment->v_divisor);
    c.segment->v_divisor = {};
    quantize(*c.segment, rows, first, c.tier);
    return c.segment;
}

std::shared_ptr<const Bytes> MetalCodec::places(const Segment & s) const {
    auto places = std::make_shared<Bytes>(device_, sizeof(uint16_t) * h_.n_kv_heads * s.view.n_places);
    ggml_zipcache_metal_rows args = {};
    args.format = device_.format(*s.format);
    args.n_tokens = s.n_tokens;
    const auto lock = device_.turn();
    const auto workspace = device_.workspace(ggml_zipcache_metal_dequantize_kv_workspace(s.format, s.n_tokens));
    check(ggml_zipcache_metal_positions(s.format, &args, device_.address(s.device_data.as()),
                                        device_.address(places->as()), workspace, device_.encoder()),
          "positions");
    return places;
}

void MetalCodec::rows_of(const Segment & s, const ggml_zipcache_cuda_rows_out & out) const {
    ggml_zipcache_metal_rows args = {};
    args.format = device_.format(*s.format);
    args.n_tokens = s.n_tokens;
    args.stride = out.stride;
    args.k = device_.address(out.k);
    args.v = device_.address(out.v);
    args.k_divisor = device_.address(out.k_divisor);
    args.v_divisor = device_.address(out.v_divisor);
    args.kept = device_.address(out.kept);
    const auto lock = device_.turn();
    const auto workspace = device_.workspace(ggml_zipcache_metal_dequantize_kv_workspace(s.format, s.n_tokens));
    check(ggml_zipcache_metal_dequantize_kv(s.format, &args, device_.address(s.device_data.as()), workspace,
                                            device_.encoder()),
          "dequantize_kv");
}

}  // namespace zipcache::metal

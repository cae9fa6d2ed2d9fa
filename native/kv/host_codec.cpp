#include "kv/host_codec.h"

#include <cstring>

namespace zipcache {
namespace {

void set_view(Segment & s) {
    s.view = {s.format,
              s.data.data(),
              s.keys_divisor(),
              s.values_divisor(),
              nullptr,
              ggml_zipcache_segment_places(s.format, s.data.data()),
              0,
              s.n_tokens,
              s.correction.empty() ? nullptr : s.correction.data()};
}

}  // namespace

std::shared_ptr<Segment> HostCodec::compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                             const Probes & probes, std::shared_ptr<const Balance> balance,
                                             const Parallel & parallel) const {
    auto segment = compressor_.compress(layer, rows, first, n, probes, std::move(balance), parallel);
    set_view(*segment);
    return segment;
}

std::shared_ptr<const Segment> HostCodec::keep(const Rows & rows, Kept && kept, const Parallel & parallel) const {
    auto segment = compressor_.keep(rows, std::move(kept), parallel);
    set_view(*segment);
    return segment;
}

std::shared_ptr<const Bytes> HostCodec::places(const Segment & s) const {
    auto places = std::make_shared<Bytes>(device_, h_.n_kv_heads * s.view.n_places * sizeof(uint16_t));
    ggml_zipcache_segment_positions(s.format, s.data.data(), places->as<uint16_t>());
    return places;
}

std::vector<int64_t> HostCodec::dequantize(const Segment & s, int64_t first, int64_t last, uint16_t * k, uint16_t * v,
                                           int64_t stride, const Parallel & parallel) const {
    const int64_t n = last - first, dim = h_.head_dim;
    std::vector<uint8_t> kept(n * h_.n_kv_heads);
    parallel(h_.n_kv_heads, [&](int head) {
        const int64_t row = head * stride * dim;
        ggml_zipcache_dequantize_kv(s.format, s.data.data(), head, first, n, s.keys_divisor(), s.values_divisor(),
                                    k + row, v + row, &kept[head * n]);
        if (s.view.correction) {
            ggml_zipcache_correct_rows(s.format, s.view.correction, head, first, n, k + row, v + row);
        }
    });
    std::vector<int64_t> tokens;
    tokens.reserve(n);
    for (int64_t t = 0; t < n; ++t) {
        const auto n_kept = static_cast<int64_t>(tokens.size());
        for (int64_t head = 0; kept[t] && n_kept < t && head < h_.n_kv_heads; ++head) {
            for (uint16_t * rows : {k + head * stride * dim, v + head * stride * dim}) {
                std::memcpy(rows + n_kept * dim, rows + t * dim, dim * sizeof(uint16_t));
            }
        }
        if (kept[t]) {
            tokens.push_back(first + t);
        }
    }
    return tokens;
}

size_t HostCodec::most_bytes(int64_t n_tokens) const {
    return size_t(n_tokens) * 2 * h_.n_kv_heads * h_.head_dim * sizeof(uint16_t);  // never more than uncompressed
}

StoredSegment HostCodec::store(const Segment & s) const {
    return {s.k_divisor, s.v_divisor, s.score, s.data, s.correction};
}

void HostCodec::restore(Segment & s, StoredSegment stored) const {
    s.k_divisor = std::move(stored.k_divisor);
    s.v_divisor = std::move(stored.v_divisor);
    s.score = std::move(stored.score);
    s.data = std::move(stored.data);
    s.correction = std::move(stored.correction);
    set_view(s);
}

}  // namespace zipcache

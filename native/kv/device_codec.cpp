#include "kv/device_codec.h"

#include <algorithm>
#include <numeric>

#include "common/error.h"

namespace zipcache {

DeviceCodec::DeviceCodec(Device & device, std::shared_ptr<const Policy> policy, const HParams & h)
    : memory_(device), policy_(std::move(policy)), h_(h) {
    for (const ggml_zipcache_format * f : {&policy_->prompt, &policy_->window}) {
        const char * error = policy_->compresses ? ggml_zipcache_cuda_format_error(f) : nullptr;
        if (error) {
            throw ArgumentError("the KV policy " + policy_->options.policy + " does not run on " + device.name() +
                                ": " + error);
        }
    }
}

const float * DeviceCodec::keys_divisor(const Segment & s) const {
    return s.balance ? s.balance->on_device.as<float>() : nullptr;  // the paper's policies divide values alone
}

const float * DeviceCodec::values_divisor(const Segment & s) const {
    if (s.balance) {
        return s.balance->on_device.as<float>() + size_t(h_.n_kv_heads) * h_.head_dim;
    }
    return s.device_divisors.size() == 0 ? nullptr : s.device_divisors.as<float>();
}

size_t DeviceCodec::bound(const ggml_zipcache_format & f, int64_t n) const {
    if (policy_->ranking == Ranking::water_fill) {
        return ggml_zipcache_cuda_segment_bound(&f, n, policy_->budget);
    }
    const int n_orders = f.same_order ? 1 : h_.n_kv_heads;
    const bool ranks = policy_->ranking == Ranking::top_ratio;
    const auto n_salient = static_cast<uint32_t>(ranks ? policy_->n_salient(n) : n);
    std::vector<uint32_t> counts;
    for (int order = 0; order < n_orders; ++order) {
        counts.push_back(n_salient);
        if (f.n_tiers > 1) {
            counts.push_back(static_cast<uint32_t>(n) - n_salient);
        }
    }
    return ggml_zipcache_cuda_segment_bytes(&f, n, counts.data());
}

size_t DeviceCodec::most_bytes(int64_t n) const {
    constexpr int64_t kPiece = 32768;  // tokens of a segment, about; they take a little more in smaller ones
    const int64_t piece = std::min(n, kPiece);
    return policy_->compresses ? bound(policy_->format_for(piece), piece) * ((n + piece - 1) / piece) : 0;
}

void DeviceCodec::set_view(Segment & s) const {
    s.view = {s.format,
              s.device_data.as(),
              keys_divisor(s),
              values_divisor(s),
              nullptr,
              ggml_zipcache_cuda_max_places(s.format, s.n_tokens),
              0,
              s.n_tokens,
              nullptr};
}

std::vector<int64_t> DeviceCodec::dequantize(const Segment & s, int64_t first, int64_t last, uint16_t * k, uint16_t * v,
                                             int64_t stride, const Parallel &) const {
    const int64_t n = s.n_tokens, dim = h_.head_dim;
    const size_t row = dim * sizeof(uint16_t);
    if (first == 0 && last == n && !ggml_zipcache_evicts(s.format)) {  // no row has another place than its token's
        rows_of(s, {n, stride, s.view.k_divisor, s.view.v_divisor, k, v, nullptr});
        std::vector<int64_t> all(n);
        std::iota(all.begin(), all.end(), int64_t(0));
        return all;
    }
    const Bytes all_k(memory_, h_.n_kv_heads * n * row), all_v(memory_, h_.n_kv_heads * n * row);
    const Bytes kept(memory_, h_.n_kv_heads * n);
    rows_of(s, {n, n, s.view.k_divisor, s.view.v_divisor, all_k.as<uint16_t>(), all_v.as<uint16_t>(), kept.as()});
    std::vector<uint8_t> is_kept(n);  // the same in every head
    memory_.read(is_kept.data(), kept.as(), n);
    std::vector<int64_t> tokens;
    tokens.reserve(last - first);
    for (int64_t begin = first, end; begin < last; begin = end) {  // runs of tokens that are kept
        end = begin + 1;
        if (!is_kept[begin]) {
            continue;
        }
        while (end < last && is_kept[end]) {
            ++end;
        }
        for (auto [to, from] : {std::pair(k, all_k.as<uint16_t>()), std::pair(v, all_v.as<uint16_t>())}) {
            memory_.copy(to + tokens.size() * dim, stride * row, from + begin * dim, n * row, (end - begin) * row,
                         h_.n_kv_heads);
        }
        for (; begin < end; ++begin) {
            tokens.push_back(begin);
        }
    }
    return tokens;
}

StoredSegment DeviceCodec::store(const Segment & s) const {
    StoredSegment stored;
    stored.v_divisor.resize(s.device_divisors.size() / sizeof(float));
    memory_.read(stored.v_divisor.data(), s.device_divisors.as(), s.device_divisors.size());
    std::vector<uint8_t> ours(s.device_data.size());
    memory_.read(ours.data(), s.device_data.as(), ours.size());
    stored.data.resize(ggml_zipcache_cpu_bytes_of_cuda(s.format, ours.data()));
    ggml_zipcache_cpu_from_cuda(s.format, ours.data(), stored.data.data());
    return stored;
}

void DeviceCodec::restore(Segment & s, StoredSegment stored) const {
    s.device_divisors = Bytes(memory_, stored.v_divisor.size() * sizeof(float));
    memory_.write(s.device_divisors.as(), stored.v_divisor.data(), s.device_divisors.size());
    std::vector<uint8_t> ours(ggml_zipcache_cuda_bytes_of_cpu(s.format, stored.data.data()));
    ggml_zipcache_cuda_from_cpu(s.format, stored.data.data(), ours.data());
    s.device_data = Bytes(memory_, ours.size());
    memory_.write(s.device_data.as(), ours.data(), ours.size());
    set_view(s);
}

void DeviceCodec::send(Balance & b) const {
    std::vector<float> all;
    for (const auto * part : {&b.k_divisor, &b.v_divisor, &b.k_weight, &b.v_weight}) {
        all.insert(all.end(), part->begin(), part->end());
    }
    b.on_device = Bytes(memory_, all.size() * sizeof(float));
    memory_.write(b.on_device.as(), all.data(), b.on_device.size());
}

}  // namespace zipcache

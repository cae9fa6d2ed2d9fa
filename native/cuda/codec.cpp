#include "cuda/codec.h"

#include "common/error.h"
#include "cuda/check.h"
#include "kv/water_fill.h"

namespace zipcache::cuda {
namespace {

bool of_prefill(const Probes & probes) {
    return probes.slot.empty();
}

SegmentSizes sizes_of(const ggml_zipcache_format & f, int64_t n) {
    SegmentSizes sizes = {};
    const TierErrors errors = tier_errors(f);
    sizes.group = f.group;
    sizes.n_tiers = f.n_tiers;
    for (int tier = 0; tier < f.n_tiers; ++tier) {
        for (int tiles = 0; tiles <= f.group / GGML_ZIPCACHE_TILE; ++tiles) {
            sizes.block[tier][tiles] =
                static_cast<int32_t>(ggml_zipcache_block_bytes(&f, tier, tiles * GGML_ZIPCACHE_TILE));
        }
        sizes.k_error[tier] = errors.k[tier];
        sizes.v_error[tier] = errors.v[tier];
        sizes.bits[tier] = errors.bits[tier];
    }
    // what is left of a segment that has all tokens in one tier
    const std::vector<uint8_t> tiers(f.n_kv_heads * n);
    const auto whole = static_cast<int64_t>(ggml_zipcache_segment_bytes(&f, n, tiers.data()));
    const int64_t blocks = n / f.group * int64_t(ggml_zipcache_block_bytes(&f, 0, f.group)) +
                           int64_t(ggml_zipcache_block_bytes(&f, 0, n % f.group));
    sizes.fixed = whole - f.n_kv_heads * blocks;
    return sizes;
}

}  // namespace

// Of all rows at hand, but `seen`.
struct CudaCodec::Scores {
    int64_t n_rows;
    Temporary<int64_t> probe_row;  // [n_probes]
    Temporary<float> score;        // [n_kv_heads, n_rows]
    Temporary<float> square;       // [n_kv_heads, n_rows]
    Temporary<float> seen;         // [n]: probes that see each row that is compressed

    Scores(CudaDevice & device, int n_kv_heads, int64_t rows, int64_t n, const std::vector<int64_t> & probes)
        : n_rows(rows),
          probe_row(device, probes),
          score(device, n_kv_heads * rows),
          square(device, n_kv_heads * rows),
          seen(device, n) {
        score.clear();
        square.clear();
    }
};

CudaCodec::CudaCodec(CudaDevice & device, std::shared_ptr<const Policy> policy, const HParams & h, OutputNorms & norms)
    : DeviceCodec(device, std::move(policy), h), device_(device), norms_(norms) {}

KeyRows CudaCodec::key_rows(const Rows & rows) const {
    return {h_.n_heads,         h_.n_kv_heads, h_.head_dim, rows.sliding_window,
            h_.attention_scale, rows.n,        rows.stride, rows.k};
}

CudaCodec::Scores CudaCodec::score(const Rows & rows, int64_t first, int64_t n, const Probes & probes) const {
    const cudaStream_t stream = device_.stream();
    const auto n_probes = static_cast<int32_t>(probes.size());
    Scores s(device_, h_.n_kv_heads, rows.n, n, probes.row);
    if (n_probes > 0 && of_prefill(probes)) {
        const ggml_zipcache_probes args = {h_.n_heads,          h_.n_kv_heads, h_.head_dim, h_.attention_scale,
                                           rows.sliding_window, rows.n,        rows.stride, rows.k,
                                           s.probe_row.data(),  probes.q};
        const ggml_zipcache_cuda_scores out = {n_probes, s.score.data(), s.square.data()};
        Temporary<uint8_t> workspace(device_, ggml_zipcache_cuda_score_probes_workspace(&args, n_probes));
        check(ggml_zipcache_cuda_score_probes(&args, &out, workspace.data(), workspace.bytes(), stream),
              "score_probes");
    } else if (n_probes > 0) {
        const Temporary<int32_t> slot(device_, probes.slot);
        const KnownProbes known = {n_probes, s.probe_row.data(), slot.data(), probes.slot_q, probes.slot_log_sum};
        score_known(key_rows(rows), known, s.score.data(), s.square.data(), stream);
    }
    count_seen(s.probe_row.data(), n_probes, rows.sliding_window, first, n, s.seen.data(), stream);
    return s;
}

std::shared_ptr<const Balance> CudaCodec::find_balance(int layer, const Rows & rows, int64_t first, int64_t n,
                                                       const Probes & probes, const Scores & scores) const {
    const cudaStream_t stream = device_.stream();
    const size_t width = size_t(h_.n_kv_heads) * h_.head_dim;
    auto found = std::make_shared<Balance>();
    found->on_device = Bytes(device_, sizeof(float) * 2 * (width + h_.n_kv_heads));
    auto * at = found->on_device.as<float>();
    const BalanceOut out = {at, at + width, at + 2 * width, at + 2 * width + h_.n_kv_heads};
    const Temporary<float> norms(device_, norms_.of(layer));
    // a window that is a layer's first has decode steps for probes
    const Temporary<float> queries(device_, of_prefill(probes) ? 0 : probes.size() * h_.n_heads * h_.head_dim);
    if (!of_prefill(probes)) {
        const Temporary<int32_t> slot(device_, probes.slot);
        gather_queries(probes.slot_q, slot.data(), probes.size(), h_.n_heads * h_.head_dim, queries.data(), stream);
    }
    const BalanceArgs args = {key_rows(rows),
                              rows.v,
                              first,
                              n,
                              static_cast<int32_t>(probes.size()),
                              scores.probe_row.data(),
                              of_prefill(probes) ? probes.q : queries.data(),
                              scores.square.data(),
                              scores.seen.data(),
                              norms.data()};
    Temporary<uint8_t> workspace(device_, balance_workspace(args));
    balance(args, out, workspace.data(), stream);
    found->k_divisor.resize(width);
    found->v_divisor.resize(width);
    found->k_weight.resize(h_.n_kv_heads);
    found->v_weight.resize(h_.n_kv_heads);
    for (auto * part : {&found->k_divisor, &found->v_divisor, &found->k_weight, &found->v_weight}) {
        check(cudaMemcpyAsync(part->data(), at, part->size() * sizeof(float), cudaMemcpyDeviceToHost, stream),
              "read a balance");
        at += part->size();
    }
    check(cudaStreamSynchronize(stream), "find a balance");
    return found;
}

// [1 or n_kv_heads, n]
void CudaCodec::find_saliency(int layer, int64_t first, int64_t n, const Scores & scores, float * to) const {
    const cudaStream_t stream = device_.stream();
    const int n_ranks = policy_->options.per_head ? h_.n_kv_heads : 1;
    if (policy_->saliency == Saliency::recent || policy_->saliency == Saliency::random) {
        zipcache::Scores none;
        none.n = n;
        const auto host = saliency_of(*policy_, none, h_, compression_seed(layer, n));
        check(cudaMemcpyAsync(to, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice, stream),
              "send a saliency");
        return;
    }
    saliency({h_.n_kv_heads, n_ranks, policy_->saliency == Saliency::normalized, scores.n_rows, first, n,
              scores.score.data(), scores.seen.data()},
             to, stream);
}

void CudaCodec::choose_tiers(const Segment & s, int layer, const Rows & rows, int64_t first, const Scores & scores,
                             uint8_t * tier) const {
    const cudaStream_t stream = device_.stream();
    const int64_t n = s.n_tokens;
    const int n_ranks = policy_->options.per_head ? h_.n_kv_heads : 1;
    Temporary<float> saliency(device_, n_ranks * n);
    find_saliency(layer, first, n, scores, saliency.data());
    if (policy_->ranking == Ranking::top_ratio) {
        top_ratio(saliency.data(), n_ranks, n, policy_->n_salient(n), tier, stream);
        return;
    }
    const int64_t width = int64_t(h_.n_kv_heads) * h_.head_dim;
    const auto * balance = s.balance->on_device.as<float>();
    const Temporary<double> mean(device_, 1);
    const Temporary<float> k(device_, h_.n_kv_heads * n), v(device_, h_.n_kv_heads * n);
    costs({key_rows(rows), rows.v, first, n, balance, balance + width, balance + 2 * width,
           balance + 2 * width + h_.n_kv_heads, n_ranks, saliency.data(), mean.data()},
          k.data(), v.data(), stream);
    if (sizes_for_ != std::pair(s.format, n)) {
        sizes_ = sizes_of(*s.format, n);
        sizes_for_ = {s.format, n};
    }
    Temporary<uint8_t> workspace(device_, water_fill_workspace(sizes_, h_.n_kv_heads));
    workspace.clear();
    const double elements = 2.0 * double(h_.n_kv_heads * n) * h_.head_dim;
    water_fill(sizes_, h_.n_kv_heads, n, k.data(), v.data(), policy_->budget * elements / 8, tier, workspace.data(),
               stream);
}

// The tiers decide how long a segment is, and only the device knows them: it gets room for any, until fit().
void CudaCodec::quantize(Segment & s, const Rows & rows, int64_t first, const uint8_t * tier) const {
    const cudaStream_t stream = device_.stream();
    s.device_data = Bytes(device_, bound(*s.format, s.n_tokens));
    const ggml_zipcache_rows args = {s.n_tokens,
                                     rows.stride,
                                     rows.k + first * h_.head_dim,
                                     rows.v + first * h_.head_dim,
                                     keys_divisor(s),
                                     values_divisor(s),
                                     tier,
                                     nullptr};
    Temporary<uint8_t> workspace(device_, ggml_zipcache_cuda_quantize_kv_workspace(s.format, s.n_tokens));
    check(ggml_zipcache_cuda_quantize_kv(s.format, &args, s.device_data.as(), s.device_data.size(), workspace.data(),
                                         workspace.bytes(), stream),
          "quantize_kv");
    set_view(s);
}

void CudaCodec::fit(const std::vector<std::shared_ptr<Segment>> & segments) const {
    struct Header {
        uint32_t magic, n_tokens, n_bytes, n_places;
    };
    const auto lock = device_.turn();
    const cudaStream_t stream = device_.stream();
    std::vector<Header> headers(segments.size());
    const Temporary<Header> gathered(device_, segments.size());
    for (size_t i = 0; i < segments.size(); ++i) {
        check(cudaMemcpyAsync(gathered.data() + i, segments[i]->device_data.as(), sizeof(Header),
                              cudaMemcpyDeviceToDevice, stream),
              "read a segment");
    }
    device_.read(headers.data(), gathered.data(), gathered.bytes());
    for (size_t i = 0; i < segments.size(); ++i) {
        if (headers[i].magic == 0) {
            throw ContextError("a compressed segment is larger than what was planned for it");
        }
        Segment & s = *segments[i];
        Bytes exact(device_, headers[i].n_bytes);
        device_.copy(exact.as(), exact.size(), s.device_data.as(), exact.size(), exact.size(), 1);
        s.device_data = std::move(exact);
        set_view(s);
    }
}

std::shared_ptr<Segment> CudaCodec::compress(int layer, const Rows & rows, int64_t first, int64_t n,
                                             const Probes & probes, std::shared_ptr<const Balance> balance,
                                             const Parallel &) const {
    const auto lock = device_.turn();
    const cudaStream_t stream = device_.stream();
    auto segment = std::make_shared<Segment>();
    segment->policy = policy_;
    segment->format = &policy_->format_for(n);
    segment->n_tokens = n;
    Temporary<uint8_t> tier(device_, n * (segment->format->same_order ? 1 : h_.n_kv_heads));
    tier.clear();
    if (policy_->ranking != Ranking::none) {
        const Scores scores = score(rows, first, n, probes);
        if (policy_->k_divisor == Divisor::balance) {
            segment->balance = balance ? std::move(balance) : find_balance(layer, rows, first, n, probes, scores);
        }
        choose_tiers(*segment, layer, rows, first, scores, tier.data());
    }
    if (policy_->v_divisor == Divisor::normalizer) {
        segment->device_divisors = Bytes(device_, sizeof(float) * h_.n_kv_heads * h_.head_dim);
        segment->device_divisors.clear();
        normalizer(key_rows(rows), rows.v, first, n, segment->device_divisors.as<float>(), stream);
    }
    quantize(*segment, rows, first, tier.data());
    check(cudaGetLastError(), "compress");
    return segment;
}

std::shared_ptr<const Bytes> CudaCodec::places(const Segment & s) const {
    const auto lock = device_.turn();
    auto places = std::make_shared<Bytes>(device_, sizeof(uint16_t) * h_.n_kv_heads * s.view.n_places);
    Temporary<uint8_t> workspace(device_, ggml_zipcache_cuda_dequantize_kv_workspace(s.format, s.n_tokens));
    check(ggml_zipcache_cuda_positions(s.format, s.device_data.as(), s.n_tokens, places->as<uint16_t>(),
                                       workspace.data(), workspace.bytes(), device_.stream()),
          "positions");
    return places;
}

void CudaCodec::rows_of(const Segment & s, const ggml_zipcache_cuda_rows_out & out) const {
    const auto lock = device_.turn();
    const cudaStream_t stream = device_.stream();
    Temporary<uint8_t> workspace(device_, ggml_zipcache_cuda_dequantize_kv_workspace(s.format, s.n_tokens));
    check(ggml_zipcache_cuda_dequantize_kv(s.format, s.device_data.as(), &out, workspace.data(), workspace.bytes(),
                                           stream),
          "dequantize_kv");
}

}  // namespace zipcache::cuda

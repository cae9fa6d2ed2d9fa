#include "cuda/layer_view.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "common/error.h"
#include "cuda/check.h"

namespace zipcache::cuda {
namespace {

// Room for n_bytes, and as much again for what comes.
void grow(Memory & memory, size_t n_bytes) {
    if (memory.size() < n_bytes) {
        memory = Memory(2 * n_bytes);
    }
}

}  // namespace

void CudaLayerView::show(const ggml_zipcache_layer & layer) {
    layer_ = layer;
    sequence_.k = layer.k;
    sequence_.v = layer.v;
    sequence_.capacity = layer.capacity;
    sequence_.index = nullptr;
    if (layer.n_segments > 0) {
        show_segments();
    }
}

void CudaLayerView::show_segments() {
    std::vector<ggml_zipcache_cuda_segment> segments;
    int64_t max_blocks = 0;
    for (int64_t i = 0; i < layer_.n_segments; ++i) {
        const ggml_zipcache_segment & s = layer_.segments[i];
        segments.push_back({device_.on_device(*s.format), s.data, s.k_divisor, s.v_divisor, s.position, s.n_places,
                            s.first_seen, s.last_seen});
        max_blocks += ggml_zipcache_cuda_max_blocks(s.format, s.n_places);
    }
    const auto n = static_cast<int32_t>(segments.size());
    const size_t n_bytes = segments.size() * sizeof segments[0];
    grow(segments_, n_bytes);
    grow(index_, ggml_zipcache_cuda_index_bytes(layer_.n_kv_heads, n, max_blocks));
    device_.write(segments_.data(), segments.data(), n_bytes);
    device_.write(n_segments_.data(), &n, sizeof n);
    const ggml_zipcache_cuda_index_args args = {layer_.n_kv_heads,
                                                layer_.head_dim,
                                                n,
                                                max_blocks,
                                                layer_.capacity,
                                                segments_.as<const ggml_zipcache_cuda_segment>(),
                                                n_segments_.as<const int32_t>()};
    const auto lock = device_.turn();
    check(ggml_zipcache_cuda_index_kv(&args, index_.as<uint8_t>(), device_.stream()), "index_kv");
    sequence_.index = index_.as<const uint8_t>();
}

void CudaLayerView::keep_probes(const ProbeSlots & slots) {
    const size_t n_bytes = slots.slot.size() * sizeof(int32_t);
    sequence_.probe_slot = nullptr;
    if (n_bytes > 0) {
        grow(slots_, n_bytes);
        device_.write(slots_.data(), slots.slot.data(), n_bytes);
        sequence_.probe_slot = slots_.as<const int32_t>();
    }
    sequence_.probe_q = slots.q;
    sequence_.probe_log_sum = slots.log_sum;
}

CudaBatchView::CudaBatchView(CudaDevice & device, const std::vector<const LayerView *> & layers)
    : device_(device), table_(layers.size() * sizeof(ggml_zipcache_cuda_sequence)) {
    std::transform(layers.begin(), layers.end(), std::back_inserter(layers_),
                   [](const LayerView * view) { return static_cast<const CudaLayerView *>(view); });
}

ggml_zipcache_cuda_attend_args CudaBatchView::attend_args() const {
    const ggml_zipcache_layer & layer = layers_[0]->layer();  // of all of them the same in what is read of it here
    ggml_zipcache_cuda_attend_args args = {};
    args.n_sequences = static_cast<int32_t>(layers_.size());
    args.n_heads = layer.n_heads;
    args.n_kv_heads = layer.n_kv_heads;
    args.head_dim = layer.head_dim;
    args.scale = layer.scale;
    args.sliding_window = layer.sliding_window;
    args.any_format =
        std::any_of(layers_.begin(), layers_.end(), [](const CudaLayerView * view) { return view->any_format(); });
    args.sequences = table_.as<const ggml_zipcache_cuda_sequence>();
    return args;
}

ggml_tensor * CudaBatchView::attend(ggml_context * ctx, const ggml_zipcache_new_tokens & tokens, const Rope * rope) {
    n_tokens_ = static_cast<const int32_t *>(tokens.n_tokens->data);
    sequences_.clear();
    auto args = attend_args();
    workspace_bytes_ = ggml_zipcache_cuda_attend_kv_workspace(&args);
    if (workspace_bytes_ == 0) {
        while (args.n_sequences > 0 && ggml_zipcache_cuda_attend_kv_workspace(&args) == 0) {
            --args.n_sequences;
        }
        throw ArgumentError("a batch of " + std::to_string(layers_.size()) + " sessions is too large for " +
                            device_.name() + "; accepted: up to " + std::to_string(args.n_sequences));
    }
    workspace_ = device_.workspace(workspace_bytes_);
    const int64_t width = int64_t(args.n_heads) * args.head_dim;
    if (rope) {
        rope_ = *rope;
        turned_q_ = Memory(size_t(width) * args.n_sequences * sizeof(float));
    }
    return own_attention(ctx, *this, width, tokens, rope);
}

void CudaBatchView::refresh() {
    std::vector<ggml_zipcache_cuda_sequence> now;
    now.reserve(layers_.size());
    for (const CudaLayerView * view : layers_) {
        now.push_back(view->sequence());
        now.back().n_tokens = n_tokens_ + (now.size() - 1);
    }
    const size_t n_bytes = now.size() * sizeof now[0];
    if (sequences_.empty() || std::memcmp(now.data(), sequences_.data(), n_bytes) != 0) {
        device_.write(table_.data(), now.data(), n_bytes);
        sequences_ = std::move(now);
    }
}

void CudaBatchView::enqueue(const ggml_tensor * node, void * stream) const {
    auto args = attend_args();
    auto rows = [&](int i) { return static_cast<const float *>(node->src[i]->data); };
    auto stride = [&](int i) { return static_cast<int64_t>(node->src[i]->nb[2] / sizeof(float)); };
    ggml_zipcache_cuda_new_tokens tokens = {rows(1), rows(2), stride(1), stride(2),
                                            nullptr, rows(0), stride(0), nullptr};
    ggml_zipcache_cuda_rope rope = {};
    args.q = rows(0);
    args.out = static_cast<float *>(node->data);
    if (rope_) {
        const Rope & r = *rope_;
        rope = {static_cast<const int32_t *>(r.positions->data),
                r.factors ? static_cast<const float *>(r.factors->data) : nullptr,
                r.n_dims,
                r.halves,
                r.base,
                r.frequency_scale,
                r.attention_factor};
        tokens.rope = &rope;
        tokens.turned_q = turned_q_.as<float>();
        args.q = tokens.turned_q;
    }
    check(ggml_zipcache_cuda_append_kv(&args, &tokens, stream), "append_kv");
    check(ggml_zipcache_cuda_attend_kv(&args, workspace_, workspace_bytes_, stream), "attend_kv");
}

}  // namespace zipcache::cuda

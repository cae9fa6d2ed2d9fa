#include "metal/layer_view.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "common/error.h"
#include "ggml-zipcache-cuda.h"

namespace zipcache::metal {
namespace {

// Room for n_bytes, and as much again for what comes.
void grow(Bytes & memory, MetalDevice & device, size_t n_bytes) {
    if (memory.size() < n_bytes) {
        memory = Bytes();
        memory = Bytes(device, 2 * n_bytes);
    }
}

}  // namespace

void MetalLayerView::show(const ggml_zipcache_layer & layer) {
    layer_ = layer;
    segments_.assign(layer.segments, layer.segments + layer.n_segments);
    is_stale_ = true;
}

void MetalLayerView::keep_probes(const ProbeSlots & slots) {
    probes_ = slots;
    if (!slots.slot.empty()) {
        grow(slots_, device_, slots.slot.size() * sizeof(int32_t));
        device_.write(slots_.as(), slots.slot.data(), slots.slot.size() * sizeof(int32_t));
    }
}

// The tables are written although a kernel that reads them may not have run yet: it is followed by one that reads what
// is written here.
void MetalLayerView::index_segments() const {
    std::vector<ggml_zipcache_metal_segment> segments;
    int64_t max_blocks = 0;
    for (const ggml_zipcache_segment & s : segments_) {
        segments.push_back({device_.format(*s.format), device_.address(s.data), device_.address(s.k_divisor),
                            device_.address(s.v_divisor), device_.address(s.position), static_cast<int32_t>(s.n_places),
                            static_cast<int32_t>(s.first_seen), static_cast<int32_t>(s.last_seen), 0});
        max_blocks += ggml_zipcache_cuda_max_blocks(s.format, s.n_places);
    }
    const auto n = static_cast<int32_t>(segments.size()), n_blocks = static_cast<int32_t>(max_blocks);
    const size_t n_bytes = segments.size() * sizeof segments[0];
    grow(table_, device_, n_bytes);
    grow(count_, device_, sizeof n);
    grow(index_, device_, ggml_zipcache_metal_index_bytes(layer_.n_kv_heads, n, n_blocks));
    std::memcpy(table_.as(), segments.data(), n_bytes);
    std::memcpy(count_.as(), &n, sizeof n);
    const ggml_zipcache_metal_index_args args = {layer_.n_kv_heads,
                                                 layer_.head_dim,
                                                 n,
                                                 n_blocks,
                                                 device_.address(table_.as()),
                                                 device_.address(count_.as()),
                                                 device_.address(index_.as())};
    check(ggml_zipcache_metal_index_kv(&args, device_.encoder()), "index_kv");
}

ggml_zipcache_metal_sequence MetalLayerView::sequence() const {
    if (is_stale_ && !segments_.empty()) {
        index_segments();
    }
    is_stale_ = false;
    ggml_zipcache_metal_sequence s = {};
    s.k = device_.address(layer_.k);
    s.v = device_.address(layer_.v);
    s.capacity = layer_.capacity;
    s.index = segments_.empty() ? 0 : device_.address(index_.as());
    if (!probes_.slot.empty()) {
        s.probe_slot = device_.address(slots_.as());
        s.probe_q = device_.address(probes_.q);
        s.probe_log_sum = device_.address(probes_.log_sum);
    }
    return s;
}

MetalBatchView::MetalBatchView(MetalDevice & device, const std::vector<const LayerView *> & layers)
    : device_(device), table_(device, layers.size() * sizeof(ggml_zipcache_metal_sequence)) {
    std::transform(layers.begin(), layers.end(), std::back_inserter(layers_),
                   [](const LayerView * view) { return static_cast<const MetalLayerView *>(view); });
}

ggml_zipcache_metal_attend_args MetalBatchView::attend_args() const {
    const ggml_zipcache_layer & layer = layers_[0]->layer();  // of all of them the same in what is read of it here
    ggml_zipcache_metal_attend_args args = {};
    args.n_sequences = static_cast<int32_t>(layers_.size());
    args.n_heads = layer.n_heads;
    args.n_kv_heads = layer.n_kv_heads;
    args.head_dim = layer.head_dim;
    args.scale = layer.scale;
    args.sliding_window = layer.sliding_window;
    args.n_groups = device_.n_groups();
    args.sequences = device_.address(table_.as());
    return args;
}

ggml_tensor * MetalBatchView::attend(ggml_context * ctx, const ggml_zipcache_new_tokens & tokens, const Rope *) {
    const auto args = attend_args();
    if (ggml_zipcache_metal_attend_kv_workspace(&args) == 0) {  // all else was asked when the model was opened
        throw ArgumentError("a batch of " + std::to_string(layers_.size()) + " sessions is too large for " +
                            device_.name() + "; accepted: up to 4096");
    }
    n_tokens_ = device_.address(tokens.n_tokens);
    return own_attention(ctx, *this, int64_t(args.n_heads) * args.head_dim, tokens, nullptr);
}

void MetalBatchView::refresh() {
    const auto lock = device_.turn();
    auto * table = table_.as<ggml_zipcache_metal_sequence>();
    for (size_t i = 0; i < layers_.size(); ++i) {
        table[i] = layers_[i]->sequence();
        table[i].n_tokens = n_tokens_ + i * sizeof(int32_t);
    }
}

void MetalBatchView::enqueue(const ggml_tensor * node, void * encoder) const {
    const auto * to = static_cast<const ggml_zipcache_metal_encoder *>(encoder);
    auto args = attend_args();
    args.q = device_.address(node->src[0]);
    args.out = device_.address(node);
    (void) device_.address(node->src[3]);  // which the table points to
    check(ggml_zipcache_metal_append_kv(&args, device_.address(node->src[1]), device_.address(node->src[2]), to),
          "append_kv");
    const auto workspace = device_.workspace(ggml_zipcache_metal_attend_kv_workspace(&args));
    check(ggml_zipcache_metal_attend_kv(&args, workspace, to), "attend_kv");
}

}  // namespace zipcache::metal

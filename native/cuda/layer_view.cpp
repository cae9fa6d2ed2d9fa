#include "cuda/layer_view.h"

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

ggml_zipcache_cuda_attend_args CudaLayerView::attend_args() const {
    ggml_zipcache_cuda_attend_args args = {};
    args.n_sequences = 1;
    args.n_heads = layer_.n_heads;
    args.n_kv_heads = layer_.n_kv_heads;
    args.head_dim = layer_.head_dim;
    args.scale = layer_.scale;
    args.sliding_window = layer_.sliding_window;
    args.any_format = any_format_;
    args.sequences = sequence_.as<const ggml_zipcache_cuda_sequence>();
    return args;
}

void CudaLayerView::send() {
    device_.write(sequence_.data(), &described_, sizeof described_);
}

void CudaLayerView::show(const ggml_zipcache_layer & layer) {
    layer_ = layer;
    described_.k = layer.k;
    described_.v = layer.v;
    described_.capacity = layer.capacity;
    described_.index = nullptr;
    if (layer.n_segments > 0) {
        show_segments();
    }
    send();
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
                                                segments_.as<const ggml_zipcache_cuda_segment>(),
                                                n_segments_.as<const int32_t>()};
    const auto lock = device_.turn();
    check(ggml_zipcache_cuda_index_kv(&args, index_.as<uint8_t>(), device_.stream()), "index_kv");
    described_.index = index_.as<const uint8_t>();
}

void CudaLayerView::keep_probes(const ProbeSlots & slots) {
    const size_t n_bytes = slots.slot.size() * sizeof(int32_t);
    described_.probe_slot = nullptr;
    if (n_bytes > 0) {
        grow(slots_, n_bytes);
        device_.write(slots_.data(), slots.slot.data(), n_bytes);
        described_.probe_slot = slots_.as<const int32_t>();
    }
    described_.probe_q = slots.q;
    described_.probe_log_sum = slots.log_sum;
    send();
}

ggml_tensor * CudaLayerView::attend(ggml_context * ctx, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                                    const TokenPlace & place) {
    described_.n_tokens = static_cast<const int32_t *>(place.n_tokens->data);
    send();
    const auto args = attend_args();
    workspace_bytes_ = ggml_zipcache_cuda_attend_kv_workspace(&args);
    workspace_ = device_.workspace(workspace_bytes_);
    ggml_tensor * inputs[] = {q, k, v, place.n_tokens};
    return own_node(ctx, *this, int64_t(layer_.n_heads) * layer_.head_dim, inputs, 4);
}

void CudaLayerView::enqueue(const ggml_tensor * node, cudaStream_t stream) const {
    auto args = attend_args();
    args.q = static_cast<const float *>(node->src[0]->data);
    args.out = static_cast<float *>(node->data);
    check(ggml_zipcache_cuda_append_kv(&args, static_cast<const float *>(node->src[1]->data),
                                       static_cast<const float *>(node->src[2]->data), stream),
          "append_kv");
    check(ggml_zipcache_cuda_attend_kv(&args, workspace_, workspace_bytes_, stream), "attend_kv");
}

}  // namespace zipcache::cuda

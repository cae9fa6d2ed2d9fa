#include "kv/f16_cache.h"

#include <algorithm>
#include <cstring>

#include "common/error.h"

namespace zipcache {
namespace {

constexpr int64_t kStep = 64;  // tokens; capacities are multiples of it

void copy_tokens(const ggml_tensor * from, ggml_tensor * to, int64_t n_tokens) {
    for (int64_t head = 0; head < to->ne[2]; ++head) {
        std::memcpy(static_cast<char *>(to->data) + head * to->nb[2],
                    static_cast<const char *>(from->data) + head * from->nb[2], n_tokens * from->nb[1]);
    }
}

}  // namespace

size_t f16_cache_bytes(const HParams & h, int64_t n_tokens) {
    return size_t(n_tokens) * h.n_layers * 2 * h.n_kv_heads * h.head_dim * sizeof(uint16_t);
}

F16Cache::F16Cache(const HParams & h, int64_t n_ctx) : h_(&h), n_ctx_(n_ctx), layers_(h.n_layers), views_(h.n_layers) {
    for (int i = 0; i < h.n_layers; ++i) {
        views_[i] = {h.n_heads, h.n_kv_heads, h.head_dim, h.attention_scale, h.window_of(i), 0, nullptr, nullptr};
    }
}

F16Cache::Layer F16Cache::allocate(int64_t capacity) const {
    Layer layer;
    layer.context.reset(ggml_init({2 * ggml_tensor_overhead(), nullptr, true}));
    layer.k = ggml_new_tensor_3d(layer.context.get(), GGML_TYPE_F16, h_->head_dim, capacity, h_->n_kv_heads);
    layer.v = ggml_new_tensor_3d(layer.context.get(), GGML_TYPE_F16, h_->head_dim, capacity, h_->n_kv_heads);
    layer.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(layer.context.get(), ggml_backend_cpu_buffer_type()));
    if (!layer.buffer) {
        throw ContextError("not enough memory for a KV cache of " + std::to_string(capacity) + " tokens (" +
                           std::to_string(f16_cache_bytes(*h_, capacity) >> 20) + " MiB)");
    }
    return layer;
}

void F16Cache::regrow(int64_t capacity) {
    ++version_;  // even if memory runs out half-way, some layers have moved
    for (int i = 0; i < h_->n_layers; ++i) {
        if (layers_[i].k && layers_[i].k->ne[1] == capacity) {
            continue;
        }
        Layer grown = allocate(capacity);
        if (layers_[i].k) {
            copy_tokens(layers_[i].k, grown.k, n_tokens_);
            copy_tokens(layers_[i].v, grown.v, n_tokens_);
        }
        layers_[i] = std::move(grown);
        views_[i].capacity = capacity;
        views_[i].k = static_cast<const uint16_t *>(layers_[i].k->data);
        views_[i].v = static_cast<const uint16_t *>(layers_[i].v->data);
    }
    capacity_ = capacity;
}

void F16Cache::reserve(int64_t n_tokens) {
    if (n_tokens <= capacity_) {
        return;
    }
    // a quarter more than asked while decoding keeps the copies cheap, and the slack small
    const int64_t wanted = n_tokens_ > 0 ? std::max(n_tokens, capacity_ + capacity_ / 4) : n_tokens;
    const int64_t rounded = (wanted + kStep - 1) / kStep * kStep;
    regrow(std::max(n_tokens, std::min(rounded, n_ctx_)));
}

void F16Cache::clear() {
    ++version_;
    n_tokens_ = capacity_ = 0;
    for (int i = 0; i < h_->n_layers; ++i) {
        layers_[i] = Layer();
        views_[i].capacity = 0;
        views_[i].k = views_[i].v = nullptr;
    }
}

F16Cache F16Cache::clone() const {
    F16Cache copy(*h_, n_ctx_);
    if (n_tokens_ > 0) {
        copy.regrow(std::min(n_ctx_, (n_tokens_ + kStep - 1) / kStep * kStep));
        copy.n_tokens_ = n_tokens_;
        for (int i = 0; i < h_->n_layers; ++i) {
            copy_tokens(layers_[i].k, copy.layers_[i].k, n_tokens_);
            copy_tokens(layers_[i].v, copy.layers_[i].v, n_tokens_);
        }
    }
    return copy;
}

KvStats F16Cache::stats() const {
    KvStats stats;
    for (const Layer & layer : layers_) {
        stats.bytes += layer.buffer ? ggml_backend_buffer_get_size(layer.buffer.get()) : 0;
    }
    stats.n_tokens = n_tokens_;
    stats.elements = f16_cache_bytes(*h_, n_tokens_) / sizeof(uint16_t);
    if (stats.elements > 0) {
        stats.bits = 8.0 * double(stats.bytes) / double(stats.elements);
        stats.ratio = 16.0 / stats.bits;
    }
    return stats;
}

}  // namespace zipcache

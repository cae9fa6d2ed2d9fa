#include "model/hparams.h"

#include <cmath>

#include "common/error.h"

namespace zipcache {
namespace {

// Generous limits: beyond them a file is damaged, and products of them still fit into 64 bits.
constexpr int64_t kMaxDimension = 1 << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxExperts = 512;

class Reader {
  public:
    explicit Reader(const GgufFile & file)
        : file_(file), prefix_(std::string(file.string("general.architecture")) + ".") {}

    std::string key(const char * name) const { return prefix_ + name; }

    int dimension(const char * name, int64_t most = kMaxDimension) const {
        return checked(name, uniform(name), 1, most);
    }

    int count_or_zero(const char * name, int64_t most) const {
        return file_.find(key(name)) ? checked(name, uniform(name), 0, most) : 0;
    }

    int dimension_or(const char * name, int fallback) const {
        return file_.find(key(name)) ? dimension(name) : fallback;
    }

    float number_or(const char * name, float fallback) const {
        const double value = file_.maybe_number(key(name)).value_or(fallback);
        if (!std::isfinite(value) || value < 0) {
            throw ModelError(key(name) + " is " + std::to_string(value) + "; accepted: a finite number >= 0");
        }
        return static_cast<float>(value);
    }

    std::string string_or(const char * name, const char * fallback) const {
        return std::string(file_.maybe_string(key(name)).value_or(fallback));
    }

  private:
    // Some keys may be arrays with one value a layer; we run models whose layers are alike.
    int64_t uniform(const char * name) const {
        const std::string full = key(name);
        if (!file_.find(full)) {
            throw ModelError("the model file has no key " + full);
        }
        const auto values = file_.integers(full);
        if (values.empty()) {
            throw ModelError(full + " is an empty array; accepted: one integer");
        }
        for (int64_t value : values) {
            if (value != values[0]) {
                throw ModelError(full + " differs between layers; accepted: the same value in every layer");
            }
        }
        return values[0];
    }

    int checked(const char * name, int64_t value, int64_t least, int64_t most) const {
        if (value < least || value > most) {
            throw ModelError(key(name) + " is " + std::to_string(value) + "; accepted: " + std::to_string(least) +
                             " to " + std::to_string(most));
        }
        return static_cast<int>(value);
    }

    const GgufFile & file_;
    std::string prefix_;
};

RopeParams read_rope(const Reader & reader, const HParams & h) {
    RopeParams rope;
    rope.n_dims = reader.dimension_or("rope.dimension_count", h.head_dim);
    if (rope.n_dims > h.head_dim || rope.n_dims % 2 != 0) {
        throw ModelError(reader.key("rope.dimension_count") + " is " + std::to_string(rope.n_dims) +
                         "; accepted: an even number of at most " + std::to_string(h.head_dim));
    }
    rope.base = reader.number_or("rope.freq_base", 10000.0f);
    rope.n_ctx_original = reader.dimension_or("rope.scaling.original_context_length", h.n_ctx_train);
    const std::string type = reader.string_or("rope.scaling.type", "none");
    float factor = reader.number_or("rope.scaling.factor", 0.0f);
    if (factor == 0.0f) {
        factor = reader.number_or("rope.scale_linear", 1.0f);  // the name of older files
    }
    if (type != "none" && type != "linear" && type != "yarn" && type != "longrope") {
        throw ModelError(reader.key("rope.scaling.type") + " is '" + type +
                         "'; accepted: none, linear, yarn, longrope");
    }
    if (type != "none" && factor > 0) {
        rope.frequency_scale = 1.0f / factor;
    }
    if (type == "longrope") {
        rope.frequency_scale = 1.0f;  // its factors are tensors
    }
    rope.yarn_mix = type == "yarn" ? 1.0f : 0.0f;
    rope.attention_factor = reader.number_or("rope.scaling.attn_factor", 1.0f);
    rope.beta_fast = reader.number_or("rope.scaling.yarn_beta_fast", 32.0f);
    rope.beta_slow = reader.number_or("rope.scaling.yarn_beta_slow", 1.0f);
    return rope;
}

}  // namespace

HParams read_hparams(const GgufFile & file) {
    const Reader reader(file);
    HParams h;
    h.architecture = file.string("general.architecture");
    h.n_layers = reader.dimension("block_count", kMaxLayers);
    h.n_embd = reader.dimension("embedding_length");
    h.n_heads = reader.dimension("attention.head_count");
    h.n_kv_heads = reader.dimension_or("attention.head_count_kv", h.n_heads);
    h.n_ff = reader.dimension("feed_forward_length");
    h.n_ctx_train = reader.dimension("context_length", int64_t(1) << 30);
    h.norm_epsilon = reader.number_or("attention.layer_norm_rms_epsilon", 1e-5f);
    if (h.n_heads % h.n_kv_heads != 0) {
        throw ModelError(reader.key("attention.head_count") + " is " + std::to_string(h.n_heads) +
                         ", which is no multiple of the " + std::to_string(h.n_kv_heads) + " KV heads");
    }
    h.head_dim = reader.dimension_or("attention.key_length", h.n_embd / h.n_heads);
    if (h.head_dim < 1 || reader.dimension_or("attention.value_length", h.head_dim) != h.head_dim) {
        throw ModelError(reader.key("attention.value_length") + " differs from the key length " +
                         std::to_string(h.head_dim) + "; accepted: the same");
    }
    h.attention_scale = 1.0f / std::sqrt(float(h.head_dim));
    h.rope = read_rope(reader, h);
    h.rope_local = h.rope;
    h.is_sliding.assign(h.n_layers, false);
    return h;
}

void read_experts(const GgufFile & file, HParams & h) {
    const Reader reader(file);
    h.n_experts = reader.count_or_zero("expert_count", kMaxExperts);
    if (h.n_experts == 0) {
        return;
    }
    h.n_experts_used = reader.dimension("expert_used_count", h.n_experts);
    h.n_ff = reader.dimension_or("expert_feed_forward_length", h.n_ff);
    h.normalize_experts = file.maybe_boolean(reader.key("expert_weights_norm")).value_or(true);
}

}  // namespace zipcache

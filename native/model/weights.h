#pragma once
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "device/device.h"
#include "model/gguf_file.h"

namespace zipcache {

// The weights of one layer. An architecture fills what it has; the rest stays null.
struct LayerWeights {
    // [rope.n_dims / 2] f32 or null; the layers on a device share them
    ggml_tensor * rope_factors = nullptr;
    ggml_tensor * rope_factors_short = nullptr;  // for contexts up to n_ctx_original (LongRoPE)
    ggml_tensor * attention_norm = nullptr;      // [n_embd]
    ggml_tensor * q = nullptr;                   // [n_embd, n_heads * head_dim]
    ggml_tensor * k = nullptr;                   // [n_embd, n_kv_heads * head_dim]
    ggml_tensor * v = nullptr;                   // [n_embd, n_kv_heads * head_dim]
    ggml_tensor * qkv = nullptr;                 // the three above in one
    ggml_tensor * q_bias = nullptr;
    ggml_tensor * k_bias = nullptr;
    ggml_tensor * v_bias = nullptr;
    ggml_tensor * q_norm = nullptr;            // [head_dim]
    ggml_tensor * k_norm = nullptr;            // [head_dim]
    ggml_tensor * attention_output = nullptr;  // [n_heads * head_dim, n_embd]
    ggml_tensor * attention_output_bias = nullptr;
    ggml_tensor * attention_post_norm = nullptr;  // [n_embd]
    ggml_tensor * ffn_norm = nullptr;             // [n_embd]
    ggml_tensor * ffn_gate = nullptr;             // [n_embd, n_ff]
    ggml_tensor * ffn_up = nullptr;               // [n_embd, n_ff], or [n_embd, 2 * n_ff] with the gate first
    ggml_tensor * ffn_down = nullptr;             // [n_ff, n_embd]
    ggml_tensor * ffn_router = nullptr;           // [n_embd, n_experts]; with it, the next three are of experts
    ggml_tensor * experts_gate = nullptr;         // [n_embd, n_ff, n_experts]
    ggml_tensor * experts_up = nullptr;           // [n_embd, n_ff, n_experts]
    ggml_tensor * experts_down = nullptr;         // [n_ff, n_embd, n_experts]
    ggml_tensor * ffn_post_norm = nullptr;        // [n_embd]
};

// Called with 0..1 as work goes on; an exception stops the work and reaches the caller.
using Progress = std::function<void(float)>;

// Where weights go.
struct WeightsPlace {
    Device * device = nullptr;  // that holds and multiplies them; null: the host
    bool repack = true;         // the host: use ggml's repacked layouts where it has one for a tensor's type
    int n_host_layers = 0;      // the first layers, which stay on the host beside a device

    // null: the host
    Device * of(int layer) const { return layer < n_host_layers ? nullptr : device; }
};

// The model's tensors. On the host, data stay in the mapped file, except what ggml repacks into a faster layout.
class Weights {
  public:
    Weights(std::shared_ptr<const GgufFile> file, const WeightsPlace & place);

    // What is requested from now on lies where this layer does.
    void begin_layer(int layer) { device_ = place_.of(layer); }
    // A tensor that only feeds matrix products, so its layout is free; null if missing and not required.
    ggml_tensor * matrix(const std::string & name, const std::vector<int64_t> & shape, bool required = true);
    // Matrices over the same input as one, rows behind rows: one product instead of several. null where they have not
    // one type and one width, and on the host, where they lie in the mapped file. Ask before matrix() for each of them.
    ggml_tensor * stack(const std::vector<std::string> & names);
    // The matrices of all experts in one tensor, always used in place: a token touches only a few of them.
    ggml_tensor * experts(const std::string & name, const std::vector<int64_t> & shape);
    // A tensor read as it is: norms, biases, embeddings, RoPE factors.
    ggml_tensor * plain(const std::string & name, const std::vector<int64_t> & shape, bool required = true);
    // Allocates and fills the repacked tensors, or those of the device. Call once, after the last request.
    void load(const Progress & progress);

    size_t mapped_bytes() const { return mapped_bytes_; }      // bytes used in place
    size_t repacked_bytes() const { return repacked_bytes_; }  // bytes copied into another layout
    size_t device_bytes() const { return device_bytes_; }      // bytes copied to the device

  private:
    struct Repacked {
        ggml_tensor * tensor;
        const GgufTensor * source;
        ggml_backend_buffer_type_t layout;
    };
    const GgufTensor * request(const std::string & name, const std::vector<int64_t> & shape, bool required) const;
    const GgufTensor * request_matrix(const std::string & name, const std::vector<int64_t> & shape,
                                      bool required) const;
    ggml_tensor * new_tensor(const GgufTensor & source);
    void use_in_place(ggml_tensor * tensor, const GgufTensor & source);
    ggml_tensor * on_device(const GgufTensor & source);
    void send(const std::function<void(size_t)> & advanced);
    void repack(const std::function<void(size_t)> & advanced);

    std::shared_ptr<const GgufFile> file_;
    WeightsPlace place_;
    Device * device_;  // of what is requested now; null: the host
    GgmlContext context_;
    GgmlContext device_context_;
    GgmlBuffer mapping_;
    std::vector<GgmlBuffer> repack_buffers_;
    std::vector<Repacked> repacked_;
    std::set<const GgufTensor *> in_place_;
    std::map<const GgufTensor *, ggml_tensor *> on_device_;
    GgmlBuffer device_buffer_;
    size_t mapped_bytes_ = 0;
    size_t repacked_bytes_ = 0;
    size_t device_bytes_ = 0;
};

// The layout that ggml's CPU backend prefers for products with this matrix, or null: the file's own is used.
ggml_backend_buffer_type_t preferred_layout(ggml_type type, int64_t n_columns, int64_t n_rows);

}  // namespace zipcache

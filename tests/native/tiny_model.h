#pragma once
// Models of random weights, as GGUF files: large enough to have everything, small enough for an emulator.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>

#include "gguf_bytes.h"

struct TinyShape {
    std::string architecture = "llama";  // or gemma3
    uint32_t n_layers = 2, n_embd = 64, n_heads = 4, n_kv_heads = 2, head_dim = 64, n_ff = 96, n_vocab = 96;
    uint32_t n_ctx = 1024, sliding_window = 0;
    bool rope_factors = false;
    bool hollow = false;  // zeros, a hole in the file
};

class TinyModel {
  public:
    TinyModel(const TinyShape & shape, unsigned seed) : shape_(shape), random_(seed) {
        const uint64_t embd = shape.n_embd, q = shape.n_heads * shape.head_dim, kv = shape.n_kv_heads * shape.head_dim;
        matrix("token_embd.weight", embd, shape.n_vocab);
        norm("output_norm.weight", embd);
        if (shape.rope_factors) {
            norm("rope_freqs.weight", shape.head_dim / 2);
        }
        for (uint32_t i = 0; i < shape.n_layers; ++i) {
            const std::string layer = "blk." + std::to_string(i) + ".";
            norm(layer + "attn_norm.weight", embd);
            matrix(layer + "attn_q.weight", embd, q);
            matrix(layer + "attn_k.weight", embd, kv);
            matrix(layer + "attn_v.weight", embd, kv);
            matrix(layer + "attn_output.weight", q, embd);
            norm(layer + "ffn_norm.weight", embd);
            matrix(layer + "ffn_gate.weight", embd, shape.n_ff);
            matrix(layer + "ffn_up.weight", embd, shape.n_ff);
            matrix(layer + "ffn_down.weight", shape.n_ff, embd);
            if (shape.architecture == "gemma3") {
                norm(layer + "attn_q_norm.weight", shape.head_dim);
                norm(layer + "attn_k_norm.weight", shape.head_dim);
                norm(layer + "post_attention_norm.weight", embd);
                norm(layer + "post_ffw_norm.weight", embd);
            }
        }
    }

    void write(const std::string & path) const {
        GgufBytes file;
        const std::string prefix = shape_.architecture + ".";
        const std::vector<std::pair<std::string, uint32_t>> entries = {
            {"block_count", shape_.n_layers},
            {"context_length", shape_.n_ctx},
            {"embedding_length", shape_.n_embd},
            {"feed_forward_length", shape_.n_ff},
            {"attention.head_count", shape_.n_heads},
            {"attention.head_count_kv", shape_.n_kv_heads},
            {"attention.key_length", shape_.head_dim},
            {"attention.value_length", shape_.head_dim},
            {"attention.sliding_window", shape_.sliding_window},
        };
        file.header(tensors_.size(), entries.size() + 1);
        file.text("general.architecture").u32(8).text(shape_.architecture);
        for (const auto & [key, value] : entries) {
            file.entry_u32(prefix + key, value);
        }
        uint64_t offset = 0;
        for (const Tensor & t : tensors_) {
            file.tensor(t.name, t.ne, 0, offset);
            offset += aligned(n_elements(t) * sizeof(float));
        }
        if (shape_.hollow) {
            std::ofstream(path, std::ios::binary) << file.data(0).bytes;
            std::filesystem::resize_file(path, file.bytes.size() + offset);
            return;
        }
        file.data(offset);
        auto * to = file.bytes.data() + file.bytes.size() - offset;
        for (const Tensor & t : tensors_) {
            const auto * from = reinterpret_cast<const char *>(t.values.data());
            std::copy(from, from + t.values.size() * sizeof(float), to);
            to += aligned(t.values.size() * sizeof(float));
        }
        std::ofstream(path, std::ios::binary) << file.bytes;
    }

  private:
    struct Tensor {
        std::string name;
        std::vector<uint64_t> ne;
        std::vector<float> values;
    };

    static uint64_t n_elements(const Tensor & t) {
        return std::accumulate(t.ne.begin(), t.ne.end(), uint64_t(1), std::multiplies<>());
    }
    static uint64_t aligned(uint64_t n_bytes) { return (n_bytes + 31) / 32 * 32; }

    void matrix(const std::string & name, uint64_t n_columns, uint64_t n_rows) {
        std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(float(n_columns)));
        fill({name, {n_columns, n_rows}, {}}, normal);
    }
    void norm(const std::string & name, uint64_t n) {
        fill({name, {n}, {}}, std::normal_distribution<float>(1.0f, 0.1f));
    }
    void fill(Tensor tensor, std::normal_distribution<float> normal) {
        tensor.values.resize(shape_.hollow ? 0 : n_elements(tensor));
        std::generate(tensor.values.begin(), tensor.values.end(), [&] { return normal(random_); });
        tensors_.push_back(std::move(tensor));
    }

    TinyShape shape_;
    std::mt19937 random_;
    std::vector<Tensor> tensors_;
};

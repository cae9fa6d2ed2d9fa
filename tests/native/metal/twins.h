#pragma once
// The same talk on the CPU and on the emulated GPU.
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "check.h"
#include "engine/session.h"
#include "tiny_model.h"

inline std::shared_ptr<zipcache::Model> open_model(const std::string & path, const char * device, int gpu_layers = -1) {
    zipcache::ModelOptions options;
    options.device = device;
    options.gpu_layers = gpu_layers;
    options.threads = 1;
    return zipcache::Model::open(path, options);
}

// A folder of this process, gone with it.
struct Folder {
    std::filesystem::path path =
        std::filesystem::temp_directory_path() / ("zipcache-metal-" + std::to_string(getpid()));
    Folder() { std::filesystem::create_directory(path); }
    ~Folder() { std::filesystem::remove_all(path); }
    Folder(const Folder &) = delete;
    Folder & operator=(const Folder &) = delete;
};

inline std::string in_folder(const std::string & name) {
    static const Folder folder;
    return (folder.path / name).string();
}

// The same model on both.
struct Pair {
    std::shared_ptr<zipcache::Model> cpu, gpu;
};

inline std::vector<int32_t> some_tokens(int n, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(n);
    std::generate(tokens.begin(), tokens.end(), [&] { return int32_t(random() % 96); });
    return tokens;
}

// A talk on the CPU and the same on the GPU.
class Twins {
  public:
    Twins(const Pair & pair, const std::string & policy, int64_t window) {
        zipcache::KvOptions kv;
        kv.policy = policy;
        kv.window = policy == "f16" ? -1 : window;
        cpu_ = std::make_unique<zipcache::Session>(pair.cpu, 0, kv);
        gpu_ = std::make_unique<zipcache::Session>(pair.gpu, 0, kv);
    }

    void prefill(const std::vector<int32_t> & tokens) {
        cpu_->prefill(tokens.data(), tokens.size());
        gpu_->prefill(tokens.data(), tokens.size());
        compare();
    }
    // n tokens, each the CPU's most probable: while it is the GPU's as well, both decode greedily.
    void decode(int n) {
        for (int i = 0; i < n; ++i) {
            const int32_t token = best(cpu_->logits());
            cpu_->decode(token);
            gpu_->decode(token);
            compare();
        }
    }
    void truncate(int64_t n) {
        cpu_->truncate(n);
        gpu_->truncate(n);
    }
    void fork() {
        cpu_ = cpu_->fork();
        gpu_ = gpu_->fork();
    }

    zipcache::Session & cpu() { return *cpu_; }
    zipcache::Session & gpu() { return *gpu_; }
    int different() const { return different_; }
    int steps() const { return steps_; }
    float worst() const { return worst_; }  // difference of two logits, in ranges of a step's logits

  private:
    static int32_t best(const std::vector<float> & logits) {
        return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    void compare() {
        const auto a = cpu_->logits(), b = gpu_->logits();
        ++steps_;
        different_ += best(a) != best(b);
        const auto [low, high] = std::minmax_element(a.begin(), a.end());
        for (size_t i = 0; i < a.size(); ++i) {
            worst_ = std::max(worst_, std::fabs(a[i] - b[i]) / (*high - *low));
        }
    }

    std::unique_ptr<zipcache::Session> cpu_, gpu_;
    int steps_ = 0, different_ = 0;
    float worst_ = 0;
};

struct TalkCase {
    const Pair & (*pair)();
    const char * policy;
    float most;  // Twins::worst(): products of f16, and what they do to a ranking
};

// Two turns, and in each answer windows are compressed; the second prompt sees the first ones dequantized.
inline void talk(const TalkCase & c) {
    Twins t(c.pair(), c.policy, 32);
    t.prefill(some_tokens(290, 2));
    t.decode(45);
    t.prefill(some_tokens(40, 3));
    t.decode(35);
    std::printf("     %s, %d of %d layers, %s: %d of %d tokens differ, logits by %.5f of their range\n",
                c.pair().cpu->hparams().architecture.c_str(), c.pair().gpu->gpu_layers(),
                c.pair().gpu->hparams().n_layers, c.policy, t.different(), t.steps(), t.worst());
    CHECK(t.different() == 0);
    CHECK(t.worst() <= c.most);
}

// Two sessions of different lengths, in one pass.
inline void decode_in_one_pass(const Pair & pair) {
    Twins a(pair, "auto", 30), b(pair, "auto", 30);
    a.prefill(some_tokens(100, 6));
    b.prefill(some_tokens(37, 7));
    for (int32_t token = 0; token < 5; ++token) {
        zipcache::Session::decode_batch({&a.cpu(), &b.cpu()}, {token, token + 1});
        zipcache::Session::decode_batch({&a.gpu(), &b.gpu()}, {token, token + 1});
    }
    a.decode(3);
    b.decode(3);
    CHECK(a.different() + b.different() == 0);
    CHECK(std::max(a.worst(), b.worst()) < 0.01f);
}

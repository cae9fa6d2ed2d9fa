// Whole models on the emulated GPU beside the CPU: what runs is all of the runtime but apple_gpu.mm.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iterator>

#include "check.h"
#include "common/error.h"
#include "engine/session.h"
#include "tiny_model.h"

using namespace zipcache;

namespace {

std::shared_ptr<Model> open(const std::string & path, const char * device) {
    ModelOptions options;
    options.device = device;
    options.threads = 1;
    return Model::open(path, options);
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

std::string in_folder(const std::string & name) {
    static const Folder folder;
    return (folder.path / name).string();
}

// The same model on both.
struct Pair {
    std::shared_ptr<Model> cpu, gpu;
};

Pair open_pair(const TinyShape & shape) {
    const std::string path = in_folder(shape.architecture + ".gguf");
    TinyModel(shape, 1).write(path);
    return {open(path, "cpu"), open(path, "metal")};
}

const Pair & llama() {
    static const Pair pair = open_pair({});
    return pair;
}

const Pair & gemma() {
    TinyShape shape;
    shape.architecture = "gemma3";
    shape.sliding_window = 96;
    static const Pair pair = open_pair(shape);
    return pair;
}

std::vector<int32_t> some_tokens(int n, unsigned seed) {
    std::mt19937 random(seed);
    std::vector<int32_t> tokens(n);
    std::generate(tokens.begin(), tokens.end(), [&] { return int32_t(random() % 96); });
    return tokens;
}

// A talk on the CPU and the same on the GPU.
class Twins {
  public:
    Twins(const Pair & pair, const std::string & policy, int64_t window) {
        KvOptions kv;
        kv.policy = policy;
        kv.window = policy == "f16" ? -1 : window;
        cpu_ = std::make_unique<Session>(pair.cpu, 0, kv);
        gpu_ = std::make_unique<Session>(pair.gpu, 0, kv);
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

    Session & cpu() { return *cpu_; }
    Session & gpu() { return *gpu_; }
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

    std::unique_ptr<Session> cpu_, gpu_;
    int steps_ = 0, different_ = 0;
    float worst_ = 0;
};

struct TalkCase {
    const Pair & (*pair)();
    const char * policy;
    float most;  // Twins::worst(): products of f16, and what they do to a ranking
};

// Two turns, and in each answer windows are compressed; the second prompt sees the first ones dequantized.
void talk(const TalkCase & c) {
    Twins t(c.pair(), c.policy, 32);
    t.prefill(some_tokens(290, 2));
    t.decode(45);
    t.prefill(some_tokens(40, 3));
    t.decode(35);
    std::printf("     %s, %s: %d of %d tokens differ, logits by %.5f of their range\n",
                c.pair().cpu->hparams().architecture.c_str(), c.policy, t.different(), t.steps(), t.worst());
    CHECK(t.different() == 0);
    CHECK(t.worst() <= c.most);
}

}  // namespace

TEST(metal_models_talk_as_on_the_cpu) {
    const TalkCase cases[] = {
        {llama, "f16", 1e-3f},     {llama, "zipcache", 0.01f}, {llama, "auto", 0.01f},
        {llama, "uniform", 0.01f}, {llama, "kivi", 0.01f},     {llama, "q8_0", 0.01f},
        {gemma, "f16", 1e-3f},     {gemma, "auto", 0.01f},     {gemma, "zipcache", 0.01f},
    };
    const int n = std::min(n_cases(int(std::size(cases))), int(std::size(cases)));
    std::for_each(cases, cases + n, talk);
}

// What is cut out of a segment is hidden by places that the GPU finds.
TEST(metal_sessions_truncate_fork_and_are_saved) {
    Twins t(llama(), "auto", 30);
    t.prefill(some_tokens(290, 4));
    t.decode(35);
    t.truncate(200);
    t.prefill(some_tokens(3, 5));
    t.fork();
    t.decode(10);
    CHECK(t.different() == 0);
    CHECK(t.worst() < 0.01f);
    const std::string file = in_folder("talk.zcs");
    t.gpu().save(file);
    const auto on_cpu = Session::load(llama().cpu, file), on_gpu = Session::load(llama().gpu, file);
    CHECK(on_gpu->logits() == t.gpu().logits());
    on_cpu->decode(7);
    on_gpu->decode(7);
    t.gpu().decode(7);
    CHECK(on_gpu->logits() == t.gpu().logits());
    const auto a = on_cpu->logits(), b = on_gpu->logits();
    for (size_t i = 0; i < a.size(); ++i) {
        CHECK(std::fabs(a[i] - b[i]) < 0.05f);
    }
}

TEST(metal_sessions_decode_in_one_pass) {
    Twins a(llama(), "auto", 30), b(llama(), "auto", 30);
    a.prefill(some_tokens(100, 6));
    b.prefill(some_tokens(37, 7));
    for (int32_t token = 0; token < 5; ++token) {
        Session::decode_batch({&a.cpu(), &b.cpu()}, {token, token + 1});
        Session::decode_batch({&a.gpu(), &b.gpu()}, {token, token + 1});
    }
    a.decode(3);
    b.decode(3);
    CHECK(a.different() + b.different() == 0);
    CHECK(std::max(a.worst(), b.worst()) < 0.01f);
}

TEST(metal_says_what_it_does_not_run) {
    KvOptions kv;
    kv.policy = "h2o";
    CHECK_THROWS(Session(llama().gpu, 0, kv), ArgumentError, "does not run on metal");
    CHECK_THROWS(open(in_folder("llama.gguf"), "metal:1"), ArgumentError, "metal (an emulated GPU)");
    TinyShape shape;
    shape.head_dim = 32;
    const std::string path = in_folder("narrow.gguf");
    TinyModel(shape, 1).write(path);
    CHECK_THROWS(open(path, "metal"), ModelError, "metal does not compute attention");
    CHECK(open(path, "auto")->executor().device().is_host());
}

// Whole models on the emulated GPU beside the CPU: what runs is all of the runtime but apple_gpu.mm.
#include <iterator>

#include "common/error.h"
#include "twins.h"

using namespace zipcache;

namespace {

Pair open_pair(const TinyShape & shape) {
    const std::string path = in_folder(shape.architecture + ".gguf");
    TinyModel(shape, 1).write(path);
    return {open_model(path, "cpu"), open_model(path, "metal")};
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
    decode_in_one_pass(llama());
}

TEST(metal_says_what_it_does_not_run) {
    KvOptions kv;
    kv.policy = "h2o";
    CHECK_THROWS(Session(llama().gpu, 0, kv), ArgumentError, "does not run on metal");
    CHECK_THROWS(open_model(in_folder("llama.gguf"), "metal:1"), ArgumentError, "metal (an emulated GPU)");
    TinyShape shape;
    shape.head_dim = 32;
    const std::string path = in_folder("narrow.gguf");
    TinyModel(shape, 1).write(path);
    CHECK_THROWS(open_model(path, "metal"), ModelError, "metal does not compute attention");
    CHECK(open_model(path, "auto")->executor().device().is_host());
}

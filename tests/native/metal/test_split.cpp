// Models whose first layers lie on the host and whose last ones on the emulated GPU, beside the CPU alone.
#include <iterator>
#include <set>

#include "common/error.h"
#include "device/devices.h"
#include "emulated_gpu.h"
#include "engine/offload.h"
#include "engine/prompt_scores.h"
#include "engine/room.h"
#include "twins.h"

using namespace zipcache;

namespace {

constexpr int kLayers = 3, kLarge = 8;
constexpr size_t kReserve = size_t(256) << 20;

TinyShape llama_shape() {
    TinyShape shape;
    shape.n_layers = kLayers;
    shape.rope_factors = true;  // both devices need them
    return shape;
}

TinyShape gemma_shape() {
    TinyShape shape;
    shape.architecture = "gemma3";
    shape.n_layers = kLayers;
    shape.sliding_window = 96;
    return shape;
}

const std::string & llama_path() {
    static const std::string path = in_folder("split-llama.gguf");
    static const bool written = (TinyModel(llama_shape(), 1).write(path), true);
    (void) written;
    return path;
}

// The last n layers on the GPU.
template <int n>
const Pair & llama() {
    static const Pair pair = {open_model(llama_path(), "cpu"), open_model(llama_path(), "metal", n)};
    return pair;
}

template <int n>
const Pair & gemma() {
    static const std::string path = in_folder("split-gemma" + std::to_string(n) + ".gguf");
    TinyModel(gemma_shape(), 1).write(path);
    static const Pair pair = {open_model(path, "cpu"), open_model(path, "metal", n)};
    return pair;
}

int layers_on_gpu(const char * device, int gpu_layers = -1) {
    return open_model(llama_path(), device, gpu_layers)->gpu_layers();
}

// A model of kLarge layers of 98 MiB, too large to be loaded in a test.
const std::shared_ptr<const GgufFile> & large() {
    static const std::shared_ptr<const GgufFile> file = [] {
        TinyShape shape;
        shape.n_layers = kLarge;
        shape.n_embd = 1024;
        shape.n_ff = 8192;
        shape.n_ctx = 1 << 16;
        shape.hollow = true;
        const std::string path = in_folder("large.gguf");
        TinyModel(shape, 1).write(path);
        return GgufFile::open(path);
    }();
    return file;
}

// The GPU has so much free, for as long as this lives.
struct Free {
    explicit Free(size_t n_bytes) { metal::pretend_free_memory(n_bytes); }
    ~Free() { metal::pretend_free_memory(0); }
    Free(const Free &) = delete;
    Free & operator=(const Free &) = delete;
};

Offload choose(const char * device, int gpu_layers = -1) {
    ModelOptions options;
    options.device = device;
    options.gpu_layers = gpu_layers;
    return choose_offload(options, large());
}

// How many layers of the large model go to the GPU; -1: it is refused.
int chosen(const char * device, int gpu_layers = -1) {
    try {
        const Offload offload = choose(device, gpu_layers);
        return offload.device ? kLarge - offload.n_host_layers : 0;
    } catch (const ModelError &) {
        return -1;
    }
}

// Weights of the last n layers of the large model, and an uncompressed session of 8,192 tokens.
size_t bytes_of(int n) {
    const auto device = open_device("metal");
    const auto network = plan_network(large(), {device.get(), false, kLarge - n});
    KvOptions f16;
    f16.policy = "f16";
    const KvStage stage = {{device.get(), kLarge - n, kLarge}, nullptr};
    return network->storage->device_bytes() + session_bytes(network->h, *make_policy(f16, network->h), stage, 8192);
}

}  // namespace

TEST(split_models_talk_as_on_the_cpu) {
    const TalkCase cases[] = {
        {llama<1>, "f16", 1e-3f},  {llama<2>, "zipcache", 0.01f}, {gemma<1>, "auto", 0.01f}, {llama<2>, "f16", 1e-3f},
        {llama<1>, "auto", 0.01f}, {llama<1>, "zipcache", 0.01f}, {gemma<2>, "auto", 0.01f}, {llama<2>, "kivi", 0.01f},
    };
    const int n = std::min(n_cases(int(std::size(cases))), int(std::size(cases)));
    std::for_each(cases, cases + n, talk);
}

// More tokens than a graph takes at once, on either device.
TEST(split_models_read_prompts_in_chunks) {
    Twins t(llama<1>(), "f16", 0);
    t.prefill(some_tokens(530, 8));
    t.decode(2);
    CHECK(t.different() == 0);
    CHECK(t.worst() < 1e-3f);
}

TEST(split_sessions_truncate_fork_and_are_saved) {
    const Pair & pair = llama<2>();
    Twins t(pair, "auto", 30);
    t.prefill(some_tokens(150, 4));
    t.decode(35);
    t.truncate(120);
    t.prefill(some_tokens(3, 5));
    t.fork();
    t.decode(10);
    CHECK(t.different() == 0);
    CHECK(t.worst() < 0.01f);
    CHECK(t.gpu().kv_stats().elements == t.cpu().kv_stats().elements);
    CHECK(t.gpu().kv_stats().compressed_elements == t.cpu().kv_stats().compressed_elements);

    const std::string of_split = in_folder("split.zcs"), of_cpu = in_folder("cpu.zcs");
    t.gpu().save(of_split);
    t.cpu().save(of_cpu);
    const auto again = Session::load(pair.gpu, of_split);
    const std::unique_ptr<Session> others[] = {Session::load(pair.cpu, of_split), Session::load(pair.gpu, of_cpu),
                                               Session::load(llama<kLayers>().gpu, of_split)};
    CHECK(again->logits() == t.gpu().logits());
    again->decode(7);
    t.gpu().decode(7);
    CHECK(again->logits() == t.gpu().logits());
    const auto expected = again->logits();
    for (const auto & other : others) {
        other->decode(7);
        const auto logits = other->logits();
        for (size_t i = 0; i < logits.size(); ++i) {
            CHECK(std::fabs(logits[i] - expected[i]) < 0.05f);
        }
    }
}

TEST(split_sessions_decode_in_one_pass) {
    decode_in_one_pass(llama<1>());
}

TEST(timing_the_cache_of_a_split_session_changes_nothing_else) {
    Twins t(llama<1>(), "auto", 30);
    t.gpu().time_cache(true);
    t.prefill(some_tokens(150, 12));
    t.prefill(some_tokens(60, 13));
    CHECK(t.different() == 0);
    CHECK(t.worst() < 0.01f);
    const SessionStats stats = t.gpu().stats();
    CHECK(stats.compress_seconds > 0 && stats.dequantize_seconds > 0);
    CHECK(stats.compress_seconds + stats.dequantize_seconds < stats.prefill_seconds);
    CHECK(t.cpu().stats().compress_seconds == 0);
}

// Each layer on the GPU as much; those on the host nothing.
TEST(a_split_session_tells_what_was_planned_for_the_gpu) {
    KvOptions f16;
    f16.policy = "f16";
    const size_t one = Session(llama<1>().gpu, 512, f16).planned_bytes();
    const size_t two = Session(llama<2>().gpu, 512, f16).planned_bytes();
    const size_t all = Session(llama<kLayers>().gpu, 512, f16).planned_bytes();
    const HParams & h = llama<1>().gpu->hparams();
    CHECK(two - one == f16_cache_bytes(h, 512) / kLayers && all - two == two - one);
}

TEST(a_cancelled_call_of_a_split_session_changes_nothing) {
    Twins t(llama<1>(), "auto", 30);
    t.prefill(some_tokens(60, 9));
    const auto more = some_tokens(20, 10);
    t.gpu().cancel();
    CHECK_THROWS(t.gpu().prefill(more.data(), more.size()), Cancelled, "cancelled");
    int calls = 0;  // the last layer's, on the GPU, throws
    auto stop = [&](float) {
        if (++calls == kLayers) {
            throw ContextError("stop here");
        }
    };
    CHECK_THROWS(t.gpu().prefill(more.data(), more.size(), stop), ContextError, "stop here");
    CHECK(t.gpu().n_past() == 60);
    t.prefill(more);
    t.decode(3);
    CHECK(t.different() == 0);
    CHECK(t.worst() < 0.01f);
}

TEST(split_models_score_prompts_as_on_the_cpu) {
    KvOptions options;
    options.probes = "all";
    const auto tokens = some_tokens(40, 11);
    std::vector<PromptScores> scores;
    for (const auto & model : {llama<2>().cpu, llama<2>().gpu}) {
        scores.push_back(score_prompt(*model, tokens.data(), tokens.size(), options, nullptr));
    }
    CHECK(scores[0].score.size() == kLayers * 2 * tokens.size());
    CHECK(scores[1].score.size() == scores[0].score.size());
    for (size_t i = 0; i < scores[0].score.size(); ++i) {
        CHECK(std::fabs(scores[0].score[i] - scores[1].score[i]) < 0.01f);
    }
    CHECK(scores[0].seen == scores[1].seen);
}

TEST(the_last_layers_go_to_the_gpu) {
    CHECK(layers_on_gpu("metal") == kLayers);
    CHECK(layers_on_gpu("auto") == kLayers);
    CHECK(layers_on_gpu("auto", 2) == 2);
    CHECK(layers_on_gpu("metal", 0) == 0);
    CHECK(layers_on_gpu("cpu", 0) == 0);
    CHECK(layers_on_gpu("cpu") == 0);
    const auto stages = llama<2>().gpu->stages();
    CHECK(stages.size() == 2 && stages[0].device->is_host() && !stages[1].device->is_host());
    CHECK(stages[0].first == 0 && stages[0].end == 1 && stages[1].first == 1 && stages[1].end == kLayers);
    const Weights & one = *llama<1>().gpu->network().storage;
    const Weights & two = *llama<2>().gpu->network().storage;
    const Weights & all = *llama<kLayers>().gpu->network().storage;
    CHECK(one.mapped_bytes() - two.mapped_bytes() == two.device_bytes() - one.device_bytes());
    CHECK(two.device_bytes() - one.device_bytes() == all.device_bytes() - two.device_bytes());
    CHECK(all.mapped_bytes() == 0);
}

TEST(loading_a_split_model_tells_how_far_it_is) {
    ModelOptions options;
    options.device = "metal";
    options.gpu_layers = 2;
    float last = 0;
    options.progress = [&](float done) {
        CHECK(done >= last && done <= 1);
        last = done;
    };
    (void) Model::open(llama_path(), options);
    CHECK(last > 0.99f);
}

TEST(numbers_of_layers_that_are_none_are_refused) {
    CHECK(layers_on_gpu("metal", 99) == 3);
    CHECK_THROWS(layers_on_gpu("metal", -2), ArgumentError, "gpu_layers is -2; accepted: 0 or more");
    CHECK_THROWS(layers_on_gpu("cpu", 1), ArgumentError, "gpu_layers is 1, and device 'cpu' is no GPU; accepted: 0");
    KvOptions kv;
    kv.policy = "h2o";
    CHECK_THROWS(Session(llama<1>().gpu, 0, kv), ArgumentError, "does not run on metal");
}

TEST(as_many_layers_as_fit_go_to_the_gpu) {
    std::set<int> seen;
    for (size_t mib = 64; mib < 2048; mib += 32) {
        const size_t available = mib << 20;
        const Free free(available);
        const int n = std::max(0, chosen("metal"));
        CHECK(chosen("auto") == n);
        CHECK(n == 0 || n == kLarge || bytes_of(n) <= available);
        CHECK(n == kLarge || bytes_of(n + 1) + kReserve > available);
        CHECK(seen.empty() || n >= *seen.rbegin());
        CHECK(n == 0 || chosen("metal", n) == n);
        seen.insert(n);
    }
    CHECK(*seen.begin() == 0 && *seen.rbegin() == kLarge);
    CHECK(seen.size() > 3);
}

TEST(layers_that_do_not_fit_are_refused) {
    {
        const Free free(size_t(600) << 20);
        CHECK(chosen("metal", 3) == 3);
        CHECK_THROWS(choose("metal", 4), ModelError, "accepted: gpu_layers up to 3");
        CHECK_THROWS(choose("auto", kLarge), ModelError,
                     "gpu_layers is 8, which needs 1048 MiB on metal, which has 600 of");
    }
    const Free less(size_t(400) << 20);  // not with a session
    CHECK_THROWS(choose("metal"), ModelError, "the model needs 1048 MiB on metal");
    CHECK(chosen("auto") == 0);
}

#include "engine/model.h"

#include <algorithm>

#include "common/error.h"
#include "device/devices.h"
#include "engine/room.h"
#include "ggml-cpu.h"
#include "graph/computable.h"
#include "kv/kv_plan.h"
#include "model/fingerprint.h"
#include "model/vocab.h"

namespace zipcache {
namespace {

constexpr std::string_view kNoTokenizer = "no_vocab";  // as llama.cpp has it, which wants the key

// Constructs a tokenizer where the file holds one. A file without one still runs on token ids.
std::unique_ptr<Tokenizer> make_tokenizer(const GgufFile & file, const HParams & h) {
    if (file.maybe_string("tokenizer.ggml.model").value_or(kNoTokenizer) == kNoTokenizer) {
        return nullptr;
    }
    auto tokenizer = Tokenizer::create(tokenizer_spec(file));
    if (tokenizer->n_vocab() > h.n_vocab) {
        throw ModelError("the tokenizer has " + std::to_string(tokenizer->n_vocab()) +
                         " tokens, more than the embedding's " + std::to_string(h.n_vocab));
    }
    return tokenizer;
}

// Why the device cannot run the model, or empty.
std::string obstacle(const std::shared_ptr<const GgufFile> & file, Device & device) {
    const auto network = plan_network(file, {&device, false});
    const std::string missing = not_computed(*network, device);
    if (!missing.empty()) {
        return device.name() + " does not compute " + missing;
    }
    constexpr size_t kReserve = size_t(256) << 20;  // activations, and what CUDA itself takes
    const size_t needed = network->storage->device_bytes() + kReserve;
    const FreeMemory memory = device.free_memory();
    if (needed > memory.free) {
        return "the model needs " + std::to_string(needed >> 20) + " MiB on " + device.name() + ", which has " +
               std::to_string(memory.free >> 20) + " of " + std::to_string(memory.total >> 20) + " MiB free";
    }
    return {};
}

// Null: the host. "auto" takes a GPU only where it can run the model.
std::unique_ptr<Device> choose_device(const ModelOptions & options, const std::shared_ptr<const GgufFile> & file) {
    auto device = open_device(options.device);
    const std::string why_not = device ? obstacle(file, *device) : "";
    if (why_not.empty()) {
        return device;
    }
    if (options.device == "auto") {
        return nullptr;
    }
    throw ModelError(why_not + "; accepted: device='cpu'");
}

}  // namespace

std::shared_ptr<Model> Model::open(const std::string & path, const ModelOptions & options) {
    const int threads = thread_count(options.threads);
    std::shared_ptr<Model> model(new Model());
    model->file_ = GgufFile::open(path);
    auto device = choose_device(options, model->file_);
    const WeightsPlace place = {device.get(), options.repack};
    model->executor_ = std::make_unique<Executor>(threads, std::move(device));
    model->network_ = load_network(model->file_, place, options.progress);
    model->output_norms_ = std::make_unique<OutputNorms>(model->file_, model->network_->h.n_layers);
    model->tokenizer_ = make_tokenizer(*model->file_, model->network_->h);
    return model;
}

uint64_t Model::fingerprint() const {
    std::call_once(fingerprint_once_, [this] { fingerprint_ = fingerprint_of(*file_); });
    return fingerprint_;
}

const Tokenizer & Model::tokenizer() const {
    if (!tokenizer_) {
        throw ModelError(file_->path() + " has no tokenizer (tokenizer.ggml.model); it runs on token ids only");
    }
    return *tokenizer_;
}

void Model::check_tokens(const int32_t * tokens, size_t n_tokens) const {
    const int n_vocab = hparams().n_vocab;
    for (size_t i = 0; i < n_tokens; ++i) {
        if (tokens[i] < 0 || tokens[i] >= n_vocab) {
            throw ArgumentError("token " + std::to_string(i) + " is " + std::to_string(tokens[i]) +
                                "; accepted: 0 to " + std::to_string(n_vocab - 1));
        }
    }
}

MemoryPlan plan_memory(const std::shared_ptr<const GgufFile> & file, int64_t n_ctx, bool repack, const KvOptions & kv) {
    const auto network = plan_network(file, {nullptr, repack});
    const HParams & h = network->h;
    if (n_ctx <= 0) {
        n_ctx = h.n_ctx_train;
    }
    MemoryPlan plan;
    plan.n_ctx = n_ctx;
    plan.weights_mapped = network->storage->mapped_bytes();
    plan.weights_repacked = network->storage->repacked_bytes();
    const auto policy = make_policy(kv, h);
    plan.kv_bytes = plan_kv(*policy, h, n_ctx);
    for_stretches(n_ctx, [&](int64_t n_past, int64_t n) {
        plan.scratch_bytes = std::max(plan.scratch_bytes, stretch_bytes(h, *policy, CpuDevice::kChunk, n_past, n));
    });
    return plan;
}

}  // namespace zipcache

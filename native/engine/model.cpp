#include "engine/model.h"

#include <algorithm>

#include "common/error.h"
#include "engine/offload.h"
#include "engine/room.h"
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

}  // namespace

std::shared_ptr<Model> Model::open(const std::string & path, const ModelOptions & options) {
    const int threads = thread_count(options.threads);
    std::shared_ptr<Model> model(new Model());
    model->file_ = GgufFile::open(path);
    Offload offload = choose_offload(options, model->file_);
    const WeightsPlace place = {offload.device.get(), options.repack, offload.n_host_layers};
    model->executor_ = std::make_unique<Executor>(threads, std::move(offload.device), offload.n_host_layers);
    model->network_ = load_network(model->file_, place, options.progress);
    model->output_norms_ = std::make_unique<OutputNorms>(model->file_, model->network_->h.n_layers);
    model->tokenizer_ = make_tokenizer(*model->file_, model->network_->h);
    return model;
}

int Model::gpu_layers() const {
    const Stage last = stages().back();
    return last.device->is_host() ? 0 : last.n_layers();
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
        plan.scratch_bytes =
            std::max(plan.scratch_bytes, stretch_bytes(h, *policy, CpuDevice::kChunk, Device::kNeverWide, n_past, n));
    });
    return plan;
}

}  // namespace zipcache

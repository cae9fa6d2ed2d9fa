#include "engine/session.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "common/error.h"

namespace zipcache {
namespace {

int64_t checked_n_ctx(const Model & model, int64_t n_ctx) {
    const int64_t most = model.hparams().n_ctx_train;
    if (n_ctx < 0 || n_ctx > most) {
        throw ArgumentError("n_ctx is " + std::to_string(n_ctx) + "; accepted: 1 to " + std::to_string(most) +
                            ", what the model was trained for, or 0 for all of it");
    }
    return n_ctx > 0 ? n_ctx : most;
}

class Stopwatch {
  public:
    explicit Stopwatch(double & total) : total_(total), start_(std::chrono::steady_clock::now()) {}
    ~Stopwatch() { total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
    Stopwatch(const Stopwatch &) = delete;
    Stopwatch & operator=(const Stopwatch &) = delete;

  private:
    double & total_;
    std::chrono::steady_clock::time_point start_;
};

}  // namespace

// One call's hold on the session: excludes other calls, and puts a cancelled or failed one back to where it began.
class Session::Turn {
  public:
    explicit Turn(Session & session) : session_(session), lock_(session.turn_), n_past_(session.cache_.size()) {}
    ~Turn() {
        if (!done_) {
            session_.cache_.resize(n_past_);
            session_.tokens_.resize(n_past_);
            session_.cancel_ = false;
            if (kept_logits_) {
                session_.logits_ = std::move(*kept_logits_);
            }
        }
        session_.prefill_graphs_.release();
    }
    Turn(const Turn &) = delete;
    Turn & operator=(const Turn &) = delete;
    void done() { done_ = true; }
    void keep_logits() { kept_logits_ = session_.logits_; }  // for calls that change them more than once

  private:
    Session & session_;
    std::lock_guard<std::mutex> lock_;
    int64_t n_past_;
    std::optional<std::vector<float>> kept_logits_;
    bool done_ = false;
};

Session::Session(std::shared_ptr<Model> model, int64_t n_ctx, const KvOptions & kv)
    : model_(std::move(model)),
      n_ctx_(checked_n_ctx(*model_, n_ctx)),
      kv_(kv),
      cache_(model_->hparams(), n_ctx_),
      decode_graph_(model_->network(), model_->executor(), static_cast<int>(n_ctx_)),
      prefill_graphs_(model_->network(), model_->executor(), static_cast<int>(n_ctx_)) {
    if (kv.policy != "f16") {
        throw ArgumentError("the KV policy is '" + kv.policy + "'; accepted: f16");
    }
}

void Session::check_room(size_t n_tokens) const {
    const auto n_past = static_cast<size_t>(cache_.size());
    if (n_tokens > static_cast<size_t>(n_ctx_) - n_past) {
        throw ContextError(std::to_string(n_tokens) + " tokens do not fit: the context holds " +
                           std::to_string(n_past) + " of at most " + std::to_string(n_ctx_));
    }
}

void Session::keep_logits(const float * logits) {
    logits_.assign(logits, logits + model_->hparams().n_vocab);
}

void Session::prefill(const int32_t * tokens, size_t n_tokens, const Progress & progress) {
    if (n_tokens == 0) {
        throw ArgumentError("prefill got no tokens; accepted: one or more");
    }
    model_->check_tokens(tokens, n_tokens);
    Turn turn(*this);
    check_room(n_tokens);
    const Stopwatch watch(stats_.prefill_seconds);
    const double total = double(n_tokens) * model_->hparams().n_layers;
    double passed = 0;
    cache_.reserve(cache_.size() + static_cast<int64_t>(n_tokens));
    for (size_t first = 0; first < n_tokens; first += kStretch) {
        const int64_t n = std::min<int64_t>(kStretch, n_tokens - first);
        prefill_stretch(tokens + first, n, [&](int64_t token_layers) {
            passed += double(token_layers);
            if (progress) {
                progress(static_cast<float>(passed / total));
            }
        });
    }
    keep_logits(prefill_graphs_.logits(cancel_));
    stats_.prefill_tokens += static_cast<int64_t>(n_tokens);
    turn.done();
}

// All tokens of the stretch pass one layer before the next begins, so that a policy that compresses keeps never more
// than one layer of uncompressed keys and values.
void Session::prefill_stretch(const int32_t * tokens, int64_t n_tokens, const std::function<void(int64_t)> & advanced) {
    const int64_t n_past = cache_.size();
    prefill_graphs_.embed(tokens, n_tokens, cancel_);
    for (int layer = 0; layer < model_->hparams().n_layers; ++layer) {
        for (int64_t first = 0; first < n_tokens; first += PrefillGraphs::kChunk) {
            const int64_t n = std::min<int64_t>(PrefillGraphs::kChunk, n_tokens - first);
            prefill_graphs_.layer(cache_, layer, n_past, first, n, cancel_);
            advanced(n);
        }
    }
    cache_.resize(n_past + n_tokens);
    tokens_.insert(tokens_.end(), tokens, tokens + n_tokens);
}

void Session::decode_one(int32_t token) {
    check_room(1);
    cache_.reserve(cache_.size() + 1);
    keep_logits(decode_graph_.run(cache_, token, cancel_));
    cache_.resize(cache_.size() + 1);
    tokens_.push_back(token);
    ++stats_.decode_tokens;
}

void Session::decode(int32_t token) {
    model_->check_tokens(&token, 1);
    Turn turn(*this);
    const Stopwatch watch(stats_.decode_seconds);
    decode_one(token);
    turn.done();
}

void Session::score(const int32_t * tokens, size_t n_tokens, float * logits) {
    model_->check_tokens(tokens, n_tokens);
    Turn turn(*this);
    check_room(n_tokens);
    turn.keep_logits();
    const Stopwatch watch(stats_.decode_seconds);
    for (size_t i = 0; i < n_tokens; ++i) {
        decode_one(tokens[i]);
        std::copy(logits_.begin(), logits_.end(), logits + i * logits_.size());
    }
    turn.done();
}

std::vector<float> Session::logits() const {
    const std::lock_guard<std::mutex> lock(turn_);
    if (logits_.empty()) {
        throw ContextError("there are no logits yet: prefill or decode first");
    }
    return logits_;
}

std::unique_ptr<Session> Session::fork() const {
    const std::lock_guard<std::mutex> lock(turn_);
    auto copy = std::make_unique<Session>(model_, n_ctx_, kv_);
    copy->cache_ = cache_.clone();
    copy->tokens_ = tokens_;
    copy->logits_ = logits_;
    return copy;
}

void Session::truncate(int64_t n_tokens) {
    const std::lock_guard<std::mutex> lock(turn_);
    if (n_tokens < 0 || n_tokens > cache_.size()) {
        throw ArgumentError("truncate to " + std::to_string(n_tokens) + " tokens; accepted: 0 to the " +
                            std::to_string(cache_.size()) + " that the context holds");
    }
    if (n_tokens < cache_.size()) {
        cache_.resize(n_tokens);
        tokens_.resize(n_tokens);
        logits_.clear();
    }
}

void Session::reset() {
    const std::lock_guard<std::mutex> lock(turn_);
    cache_.clear();
    tokens_.clear();
    logits_.clear();
}

int64_t Session::n_past() const {
    const std::lock_guard<std::mutex> lock(turn_);
    return cache_.size();
}

std::vector<int32_t> Session::tokens() const {
    const std::lock_guard<std::mutex> lock(turn_);
    return tokens_;
}

KvStats Session::kv_stats() const {
    const std::lock_guard<std::mutex> lock(turn_);
    return cache_.stats();
}

SessionStats Session::stats() const {
    const std::lock_guard<std::mutex> lock(turn_);
    return stats_;
}

}  // namespace zipcache

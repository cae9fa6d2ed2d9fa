#include "engine/session.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <numeric>
#include <optional>

#include "common/error.h"
#include "common/pages.h"
#include "engine/prompt_probes.h"
#include "engine/room.h"
#include "engine/session_file.h"

namespace zipcache {
namespace {

int64_t checked_n_ctx(const Model & model, int64_t n_ctx) {
    const int64_t most = model.hparams().n_ctx_train;
    if (n_ctx < 0 || n_ctx > most) {
        throw ArgumentError("n_ctx is " + std::to_string(n_ctx) + "; accepted: 1 to " + std::to_string(most) +
                            ", what the model was trained for, or 0 for all of it");
    }
    return n_ctx;
}

// Throws ArgumentError where the sessions cannot share a graph.
void check_together(const std::vector<Session *> & sessions) {
    const Network & network = sessions[0]->model()->network();
    auto factors = [&](const Session & s) { return network.rope_factors_for(0, static_cast<int>(s.n_ctx())); };
    for (size_t i = 1; i < sessions.size(); ++i) {
        const std::string name = "session " + std::to_string(i);
        if (sessions[i]->model() != sessions[0]->model()) {
            throw ArgumentError(name + " is not of session 0's model; accepted: sessions of one model");
        }
        if (factors(*sessions[i]) != factors(*sessions[0])) {
            throw ArgumentError(name + " has an n_ctx of " + std::to_string(sessions[i]->n_ctx()) +
                                " and session 0 of " + std::to_string(sessions[0]->n_ctx()) + "; accepted: all up to " +
                                std::to_string(network.h.rope.n_ctx_original) +
                                " or all above, for this model's positions differ");
        }
    }
}

// By address: in which order two batches take the turns of sessions that they share, so that neither waits for the
// other, and whose columns the graph has, so that the same sessions find it again.
std::vector<size_t> by_address(const std::vector<Session *> & sessions) {
    std::vector<size_t> order(sessions.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return sessions[a] == sessions[b] ? a < b : std::less<>()(sessions[a], sessions[b]);
    });
    for (size_t i = 1; i < order.size(); ++i) {
        if (sessions[order[i]] == sessions[order[i - 1]]) {
            throw ArgumentError("session " + std::to_string(order[i - 1]) + " is session " + std::to_string(order[i]) +
                                ", too; accepted: different ones");
        }
    }
    return order;
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
            session_.cache_.abandon();
            if (kept_cache_) {
                session_.cache_ = std::move(*kept_cache_);
            } else if (session_.cache_.size() > n_past_) {
                session_.cache_.truncate(n_past_);
            }
            session_.tokens_.resize(n_past_);
            session_.cancel_ = false;
            if (kept_logits_) {
                session_.logits_ = std::move(*kept_logits_);
            }
        }
        session_.cache_.release_scratch();
        session_.prefill_graphs_.release();
        if (trims_) {
            trim_heap();
        }
    }
    Turn(const Turn &) = delete;
    Turn & operator=(const Turn &) = delete;
    void done() { done_ = true; }
    // For calls that take much memory for a short time.
    void trim_after() { trims_ = true; }
    // For calls that change them more than once. What was compressed on the way cannot be taken back otherwise; an
    // uncompressed cache just forgets its newest rows.
    void keep_all() {
        kept_logits_ = session_.logits_;
        if (session_.cache_.policy().compresses) {
            kept_cache_ = session_.cache_.clone();
        }
    }

  private:
    Session & session_;
    std::lock_guard<std::mutex> lock_;
    int64_t n_past_;
    std::optional<std::vector<float>> kept_logits_;
    std::optional<KvCache> kept_cache_;
    bool done_ = false;
    bool trims_ = false;
};

Session::Session(const std::shared_ptr<Model> & model, int64_t n_ctx, const KvOptions & kv)
    : Session(model, n_ctx, make_policy(kv, model->hparams())) {}

Session::Session(const std::shared_ptr<Model> & model, int64_t n_ctx, const std::shared_ptr<const Policy> & policy)
    : Session(model, policy, make_codecs(model->stages(), policy, model->hparams(), model->output_norms()),
              fitting_n_ctx(*model, policy, checked_n_ctx(*model, n_ctx))) {
    if (policy->wants_probes()) {
        check_probes(*model, policy->options);
    }
}

Session::Session(std::shared_ptr<Model> model, const std::shared_ptr<const Policy> & policy,
                 std::vector<KvStage> stages, int64_t n_ctx)
    : model_(std::move(model)),
      n_ctx_(n_ctx),
      cache_(policy, model_->hparams(), std::move(stages), n_ctx_),
      decode_graph_(model_->network(), model_->executor(), static_cast<int>(n_ctx_), 1),
      prefill_graphs_(model_->network(), model_->executor(), static_cast<int>(n_ctx_)) {}

Parallel Session::parallel() const {
    return [this](int n, const std::function<void(int)> & task) { model_->executor().parallel(n, task); };
}

void Session::check_room(size_t n_tokens, const std::string & whose) const {
    const auto n_past = static_cast<size_t>(cache_.size());
    if (n_tokens > static_cast<size_t>(n_ctx_) - n_past) {
        throw ContextError(whose + std::to_string(n_tokens) + " tokens do not fit: the context holds " +
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
    turn.trim_after();
    const Stopwatch watch(stats_.prefill_seconds);
    const double total = double(n_tokens) * model_->hparams().n_layers;
    double passed = 0;
    if (n_tokens > size_t(stretch_after(cache_.size()))) {
        turn.keep_all();
    }
    for (size_t first = 0, n; first < n_tokens; first += n) {
        n = std::min<size_t>(stretch_after(cache_.size()), n_tokens - first);
        prefill_stretch(tokens + first, static_cast<int64_t>(n), [&](int64_t token_layers) {
            passed += double(token_layers);
            if (progress) {
                progress(static_cast<float>(passed / total));
            }
        });
        // before the cache takes the tokens over, for this may be cancelled and that not be taken back
        const bool last = first + n == n_tokens;
        const float * logits = last ? prefill_graphs_.logits(cancel_) : nullptr;
        cache_.commit(static_cast<int64_t>(n));
        tokens_.insert(tokens_.end(), tokens + first, tokens + first + n);
        if (last) {
            keep_logits(logits);
        }
    }
    stats_.prefill_tokens += static_cast<int64_t>(n_tokens);
    turn.done();
}

// The work of a cache that compresses, on the device of the layer. A GPU does it behind the host's back, after what it
// was asked before, and only where it is timed does the host wait for either.
void Session::timed(Device & device, double & total, const std::function<void()> & work) const {
    if (!times_cache_ || !cache_.policy().compresses) {
        work();
        return;
    }
    device.settle();
    const Stopwatch watch(total);
    work();
    device.settle();
}

// All tokens of the stretch pass one layer before the next begins. A layer's keys and values are compressed when it is
// done, so never more than one layer of them lies uncompressed. The caller commits.
void Session::prefill_stretch(const int32_t * tokens, int64_t n_tokens, const std::function<void(int64_t)> & advanced) {
    const int64_t position = cache_.size();
    const Policy & policy = cache_.policy();
    prefill_graphs_.embed(tokens, n_tokens, cancel_);
    if (policy.compresses && policy.wants_probes()) {
        timed(cache_.device_of(0), stats_.compress_seconds, [&] {
            prefill_graphs_.watch(prompt_probes(*model_, policy.options, tokens, n_tokens, uint64_t(position)));
        });
    }
    for (int layer = 0; layer < model_->hparams().n_layers; ++layer) {
        Device & device = cache_.device_of(layer);
        PrefillRows rows;
        timed(device, stats_.dequantize_seconds, [&] { rows = cache_.begin_prefill(layer, n_tokens, parallel()); });
        const int64_t chunk = prefill_graphs_.chunk(layer, rows.n_past + n_tokens);
        for (int64_t first = 0; first < n_tokens; first += chunk) {
            const int64_t n = std::min(chunk, n_tokens - first);
            prefill_graphs_.layer(rows, layer, position, first, n, cancel_);
            advanced(n);
        }
        timed(device, stats_.compress_seconds, [&] {
            cache_.end_prefill(layer, n_tokens, prefill_graphs_.probes(), prefill_graphs_.probe_q(), parallel());
        });
        stats_.scratch_bytes = std::max(stats_.scratch_bytes, prefill_graphs_.bytes() + cache_.scratch_bytes());
    }
}

DecodeGraph & Session::graph_of(int n_sequences) {
    if (n_sequences == 1) {
        return decode_graph_;
    }
    if (!batch_graph_ || batch_graph_->n_sequences() != n_sequences) {
        batch_graph_.reset();
        batch_graph_ =
            std::make_unique<DecodeGraph>(model_->network(), model_->executor(), static_cast<int>(n_ctx_), n_sequences);
    }
    return *batch_graph_;
}

// Each session's turn has been taken, and it has room. The same ones in the same order find their graph again.
void Session::step(const std::vector<Session *> & sessions, const int32_t * tokens, const std::atomic<bool> & cancel) {
    std::vector<Step> steps;
    for (size_t i = 0; i < sessions.size(); ++i) {
        Session & session = *sessions[i];
        session.cache_.make_room(session.parallel());
        // all memory that is needed, before the first of them is changed
        session.tokens_.push_back(tokens[i]);
        session.logits_.reserve(session.model_->hparams().n_vocab);
        steps.push_back({&session.cache_, tokens[i]});
    }
    const float * logits = sessions[0]->graph_of(static_cast<int>(steps.size())).run(steps, cancel);
    for (Session * session : sessions) {
        session->keep_logits(logits);
        session->cache_.advance();
        ++session->stats_.decode_tokens;
        logits += session->logits_.size();
    }
}

void Session::decode(int32_t token) {
    model_->check_tokens(&token, 1);
    Turn turn(*this);
    const Stopwatch watch(stats_.decode_seconds);
    check_room(1);
    step({this}, &token, cancel_);
    turn.done();
}

void Session::decode_batch(const std::vector<Session *> & sessions, const std::vector<int32_t> & tokens) {
    if (sessions.empty() || tokens.size() != sessions.size()) {
        throw ArgumentError("decode_batch got " + std::to_string(sessions.size()) + " sessions and " +
                            std::to_string(tokens.size()) +
                            " tokens; accepted: one session or more, and a token for each");
    }
    check_together(sessions);
    const std::vector<size_t> order = by_address(sessions);
    sessions[0]->model_->check_tokens(tokens.data(), tokens.size());
    std::deque<Turn> turns;
    std::deque<Stopwatch> watches;
    std::vector<Session *> ordered;
    std::vector<int32_t> ordered_tokens;
    for (size_t i : order) {
        turns.emplace_back(*sessions[i]);
        watches.emplace_back(sessions[i]->stats_.decode_seconds);
        ordered.push_back(sessions[i]);
        ordered_tokens.push_back(tokens[i]);
    }
    for (size_t i = 0; i < sessions.size(); ++i) {
        const std::string whose = "session " + std::to_string(i) + ": ";
        sessions[i]->check_room(1, whose);
        if (sessions[i]->cancel_) {
            throw Cancelled(whose + "the computation was cancelled");
        }
    }
    const std::atomic<bool> never{false};
    step(ordered, ordered_tokens.data(), ordered.size() == 1 ? ordered[0]->cancel_ : never);
    for (Turn & turn : turns) {
        turn.done();
    }
}

void Session::score(const int32_t * tokens, size_t n_tokens, float * logits) {
    model_->check_tokens(tokens, n_tokens);
    Turn turn(*this);
    check_room(n_tokens);
    turn.keep_all();
    const Stopwatch watch(stats_.decode_seconds);
    for (size_t i = 0; i < n_tokens; ++i) {
        step({this}, tokens + i, cancel_);
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
    std::unique_ptr<Session> copy(new Session(model_, cache_.shared_policy(), cache_.stages(), n_ctx_));
    copy->cache_ = cache_.clone();
    copy->tokens_ = tokens_;
    copy->logits_ = logits_;
    return copy;
}

void Session::save(const std::string & path) const {
    SessionFile::save(*this, path);
}

std::unique_ptr<Session> Session::load(const std::shared_ptr<Model> & model, const std::string & path) {
    return SessionFile::load(model, path);
}

void Session::truncate(int64_t n_tokens) {
    const std::lock_guard<std::mutex> lock(turn_);
    if (n_tokens < 0 || n_tokens > cache_.size()) {
        throw ArgumentError("truncate to " + std::to_string(n_tokens) + " tokens; accepted: 0 to the " +
                            std::to_string(cache_.size()) + " that the context holds");
    }
    if (n_tokens < cache_.size()) {
        cache_.truncate(n_tokens);
        tokens_.resize(n_tokens);
        logits_.clear();
    }
}

int64_t Session::least_kept() const {
    const std::lock_guard<std::mutex> lock(turn_);
    return cache_.least_kept();
}

void Session::reset() {
    const std::lock_guard<std::mutex> lock(turn_);
    cache_.clear();
    batch_graph_.reset();
    tokens_.clear();
    logits_.clear();
}

void Session::time_cache(bool on) {
    const std::lock_guard<std::mutex> lock(turn_);
    times_cache_ = on;
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

size_t Session::planned_bytes() const {
    const std::lock_guard<std::mutex> lock(turn_);
    return session_bytes(model_->hparams(), cache_.policy(), cache_.stages().back(), n_ctx_);
}

}  // namespace zipcache

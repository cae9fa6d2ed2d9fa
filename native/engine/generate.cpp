#include "engine/generate.h"

#include "common/error.h"

namespace zipcache {

Generation::Generation(std::shared_ptr<Session> session, std::vector<int32_t> prompt, GenerateOptions options,
                       Progress progress)
    : session_(std::move(session)),
      prompt_(std::move(prompt)),
      options_(std::move(options)),
      progress_(std::move(progress)),
      sampler_(options_.sampler, session_->model()->hparams().n_vocab),
      stop_(options_.stop) {
    if (options_.max_tokens < -1) {
        throw ArgumentError("max_tokens is " + std::to_string(options_.max_tokens) +
                            "; accepted: 0 or more, or -1 for as many as the context holds");
    }
}

// The runtime's main path: prefill the prompt, then sample, stream, decode.
std::optional<Piece> Generation::next() {
    if (finish_ != Finish::running) {
        return std::nullopt;
    }
    if (!advance() || (options_.max_tokens >= 0 && n_generated_ >= options_.max_tokens)) {
        finish_ = Finish::length;
        return std::nullopt;
    }
    const std::vector<float> logits = session_->logits();
    const Sample sample = sampler_.sample(logits.data());
    const Model & model = *session_->model();
    if (model.has_tokenizer() && model.tokenizer().is_end(sample.token)) {
        return end(sample);
    }
    sampler_.accept(sample.token);
    newest_ = sample.token;
    ++n_generated_;
    Piece piece = {show(sample.token), sample.token, sample.logprob};
    if (stop_.stopped()) {
        finish_ = Finish::stop;
    } else if (n_generated_ == options_.max_tokens) {
        finish_ = Finish::length;
    }
    if (finish_ == Finish::length) {
        piece.text += stop_.push(utf8_.flush()) + stop_.flush();
    }
    return piece;
}

// Brings the cache, and with it the logits, up to the newest token. False: the context is full.
bool Generation::advance() {
    if (!started_) {
        if (!prompt_.empty()) {
            session_->prefill(prompt_.data(), prompt_.size(), progress_);
        }
        for (int32_t token : session_->tokens()) {
            sampler_.accept(token);
        }
        started_ = true;
    }
    if (newest_) {
        if (session_->n_past() == session_->n_ctx()) {
            return false;
        }
        session_->decode(*newest_);
        newest_.reset();
    }
    return true;
}

void Generation::decode_newest(const std::vector<Generation *> & replies) {
    std::vector<Generation *> waiting;
    std::vector<Session *> sessions;
    std::vector<int32_t> tokens;
    for (Generation * reply : replies) {
        if (reply->finish_ == Finish::running && reply->newest_ &&
            reply->session_->n_past() < reply->session_->n_ctx()) {
            waiting.push_back(reply);
            sessions.push_back(reply->session_.get());
            tokens.push_back(*reply->newest_);
        }
    }
    if (waiting.empty()) {
        return;
    }
    Session::decode_batch(sessions, tokens);
    for (Generation * reply : waiting) {
        reply->newest_.reset();
    }
}

// The model ended its reply. What was still held back comes with the end token.
std::optional<Piece> Generation::end(const Sample & sample) {
    finish_ = Finish::stop;
    std::string rest = stop_.push(utf8_.flush()) + stop_.flush();
    if (rest.empty()) {
        return std::nullopt;
    }
    return Piece{std::move(rest), sample.token, sample.logprob};
}

std::string Generation::show(int32_t token) {
    const Model & model = *session_->model();
    if (!model.has_tokenizer()) {
        return {};
    }
    const Tokenizer & tokenizer = model.tokenizer();
    if (token >= tokenizer.n_vocab()) {  // an embedding may be padded beyond the vocabulary
        return {};
    }
    return stop_.push(utf8_.push(tokenizer.piece(token, false)));
}

}  // namespace zipcache

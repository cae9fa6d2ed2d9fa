#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/session.h"
#include "engine/stop_strings.h"
#include "sample/sampler.h"
#include "text/tokenizer.h"

namespace zipcache {

struct GenerateOptions {
    int64_t max_tokens = -1;  // most tokens to generate; -1: until the context is full
    SamplerOptions sampler;
    std::vector<std::string> stop;  // the reply ends before any of these
};

// One generated token. `text` is whole UTF-8; it may be empty while a character or a stop string is undecided, and
// may hold text of earlier tokens.
struct Piece {
    std::string text;
    int32_t token;
    float logprob;
};

enum class Finish { running, stop, length };  // stop: end token or stop string; length: max_tokens or a full context

// One reply, token by token. The cache then holds the prompt and every token but the newest.
class Generation {
  public:
    // prompt: tokens to append first; may be empty when the session has logits already.
    Generation(std::shared_ptr<Session> session, std::vector<int32_t> prompt, GenerateOptions options,
               Progress progress = nullptr);

    // The next piece, or nothing at the end. What it throws leaves the reply where it was; next() may be called again.
    std::optional<Piece> next();
    Finish finish() const { return finish_; }
    // The newest tokens of several replies, of different sessions of one model, reach their caches in one pass. next()
    // of each then has only to sample.
    static void decode_newest(const std::vector<Generation *> & replies);

  private:
    bool advance();
    std::optional<Piece> end(const Sample & sample);
    std::string show(int32_t token);

    std::shared_ptr<Session> session_;
    std::vector<int32_t> prompt_;
    GenerateOptions options_;
    Progress progress_;
    Sampler sampler_;
    StopStrings stop_;
    Utf8Stream utf8_;
    std::optional<int32_t> newest_;  // sampled, not yet in the cache
    bool started_ = false;
    int64_t n_generated_ = 0;
    Finish finish_ = Finish::running;
};

}  // namespace zipcache

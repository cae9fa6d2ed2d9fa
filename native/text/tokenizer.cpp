#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "common/error.h"
#include "text/byte_bpe.h"
#include "text/sentencepiece.h"
#include "text/unicode.h"
#include "text/utf8.h"

namespace zipcache {

namespace {

// Tokens that end a turn in one chat format or another; not every file names them as eot or eom.
constexpr std::array<std::string_view, 7> turn_ends = {
    "<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|eom_id|>",
};

void check_length(const char * key, size_t got, size_t n_vocab, bool may_be_empty) {
    if (got == n_vocab || (may_be_empty && got == 0))
        return;
    throw ModelError(std::string(key) + " has " + std::to_string(got) + " elements, tokenizer.ggml.tokens has " +
                     std::to_string(n_vocab) + "; they must be equal" + (may_be_empty ? " (or the key absent)" : ""));
}

void check_token(const char * key, int32_t id, size_t n_vocab) {
    if (id >= -1 && id < static_cast<int64_t>(n_vocab))
        return;
    throw ModelError(std::string(key) + " is " + std::to_string(id) + ", expected a token below " +
                     std::to_string(n_vocab));
}

void check_flag(const char * flag, bool value, const char * key, int32_t id) {
    if (value && id < 0)
        throw ModelError(std::string(flag) + " is true, but the file has no " + key);
}

void check_types(const std::vector<TokenType> & types) {
    for (size_t id = 0; id < types.size(); id++) {
        if (types[id] >= TokenType::undefined && types[id] <= TokenType::byte)
            continue;
        throw ModelError("tokenizer.ggml.token_type[" + std::to_string(id) + "] is " +
                         std::to_string(static_cast<int32_t>(types[id])) + ", expected 0 to 6");
    }
}

void check(const TokenizerSpec & spec) {
    const size_t n_vocab = spec.tokens.size();
    if (n_vocab == 0)
        throw ModelError("tokenizer.ggml.tokens is empty or missing; expected the vocabulary");
    if (n_vocab > INT32_MAX / 2)
        throw ModelError("tokenizer.ggml.tokens has " + std::to_string(n_vocab) + " elements, too many");
    if (spec.merges.size() > INT32_MAX)
        throw ModelError("tokenizer.ggml.merges has too many elements");
    check_length("tokenizer.ggml.token_type", spec.types.size(), n_vocab, true);
    check_length("tokenizer.ggml.scores", spec.scores.size(), n_vocab, spec.model != "llama");
    check_types(spec.types);
    check_token("tokenizer.ggml.bos_token_id", spec.bos, n_vocab);
    check_token("tokenizer.ggml.eos_token_id", spec.eos, n_vocab);
    check_token("tokenizer.ggml.eot_token_id", spec.eot, n_vocab);
    check_token("tokenizer.ggml.eom_token_id", spec.eom, n_vocab);
    check_token("tokenizer.ggml.unknown_token_id", spec.unknown, n_vocab);
    check_token("tokenizer.ggml.padding_token_id", spec.padding, n_vocab);
    check_flag("tokenizer.ggml.add_bos_token", spec.add_bos, "tokenizer.ggml.bos_token_id", spec.bos);
    check_flag("tokenizer.ggml.add_eos_token", spec.add_eos, "tokenizer.ggml.eos_token_id", spec.eos);
    const auto nan =
        std::find_if(spec.scores.begin(), spec.scores.end(), [](float score) { return std::isnan(score); });
    if (nan != spec.scores.end()) {
        throw ModelError("tokenizer.ggml.scores[" + std::to_string(nan - spec.scores.begin()) + "] is not a number");
    }
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::create(TokenizerSpec spec) {
    if (spec.model != "gpt2" && spec.model != "llama") {
        throw ModelError("unknown tokenizer '" + spec.model +
                         "' (tokenizer.ggml.model); known: gpt2 (byte-level BPE), llama (SentencePiece)");
    }
    check(spec);
    if (spec.types.empty())
        spec.types.assign(spec.tokens.size(), TokenType::normal);
    if (spec.model == "gpt2")
        return std::make_unique<ByteBpe>(std::move(spec));
    return std::make_unique<SentencePiece>(std::move(spec));
}

Tokenizer::Tokenizer(TokenizerSpec spec) : spec_(std::move(spec)) {}

void Tokenizer::file_tokens(TextTable & ids) {
    for (int32_t id = 0; id < n_vocab(); id++) {
        const int32_t other = ids.insert(id);
        if (other < 0)
            continue;
        throw ModelError("tokenizer.ggml.tokens: " + std::to_string(other) + " and " + std::to_string(id) +
                         " are both '" + std::string(spec_.tokens[id]) + "'");
    }
    ends_ = {spec_.eos, spec_.eot, spec_.eom};
    for (const std::string_view name : turn_ends)
        ends_.push_back(ids.find(name));
    std::sort(ends_.begin(), ends_.end());
    ends_.erase(std::unique(ends_.begin(), ends_.end()), ends_.end());
    if (ends_.front() < 0)
        ends_.erase(ends_.begin());
}

TokenType Tokenizer::checked_type(int32_t token) const {
    if (token >= 0 && token < n_vocab())
        return spec_.types[token];
    throw ArgumentError("token " + std::to_string(token) + " is out of range, expected 0 to " +
                        std::to_string(n_vocab() - 1));
}

std::vector<int32_t> Tokenizer::tokenize(std::string_view text, bool add_bos, bool add_eos, bool special) const {
    if (add_bos && spec_.bos < 0)
        throw ArgumentError("add_bos is true, but the model has no bos token");
    if (add_eos && spec_.eos < 0)
        throw ArgumentError("add_eos is true, but the model has no eos token");
    std::vector<int32_t> out = encode(text, special);
    if (add_bos)
        out.insert(out.begin(), spec_.bos);
    if (add_eos)
        out.push_back(spec_.eos);
    return out;
}

bool Tokenizer::is_end(int32_t token) const {
    return std::binary_search(ends_.begin(), ends_.end(), token);
}

bool Tokenizer::is_control(int32_t token) const {
    return token >= 0 && token < n_vocab() && spec_.types[token] == TokenType::control;
}

bool Tokenizer::is_special(int32_t token) const {
    if (token < 0 || token >= n_vocab() || is_control(token))
        return is_control(token);
    const std::string_view text = piece(token, false);
    bool punctuates = false;
    for (size_t pos = 0; pos < text.size();) {
        const Utf8Char c = decode_utf8(text, pos);
        const CharClass kind = c.status == Utf8Status::valid ? char_class(c.code) : CharClass::other;
        if (kind != CharClass::punctuation && kind != CharClass::space)
            return false;
        punctuates |= kind == CharClass::punctuation;
        pos += c.size;
    }
    return punctuates;
}

}  // namespace zipcache

#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace zipcache {

class TextTable;

// Token types as GGUF numbers them (tokenizer.ggml.token_type).
enum class TokenType : int32_t { undefined, normal, unknown, control, user_defined, unused, byte };

// Everything a tokenizer needs, taken from the metadata of a model file by model/. Views point into that file,
// which must outlive the tokenizer.
struct TokenizerSpec {
    std::string model;                     // "gpt2" (byte-level BPE) or "llama" (SentencePiece)
    std::string pre;                       // name of the pre-tokenizer, for byte-level BPE
    std::vector<std::string_view> tokens;  // [n_vocab]
    std::vector<float> scores;             // [n_vocab], SentencePiece
    std::vector<TokenType> types;          // [n_vocab], may be empty: all normal
    std::vector<std::string_view> merges;  // byte-level BPE, best first, "left right"
    int32_t bos = -1, eos = -1, eot = -1, eom = -1, unknown = -1, padding = -1;  // -1: the model has none
    bool add_bos = false, add_eos = false;
    bool add_space_prefix = true;           // SentencePiece
    bool remove_extra_whitespaces = false;  // SentencePiece
};

// Text to tokens and back. Immutable after construction and safe to share between threads.
class Tokenizer {
  public:
    // Throws ModelError for an unknown tokenizer or pre-tokenizer (the message lists the known ones),
    // and for tables that contradict each other.
    static std::unique_ptr<Tokenizer> create(TokenizerSpec spec);
    virtual ~Tokenizer() = default;

    // Tokens of `text`, any bytes; invalid UTF-8 is read as U+FFFD by byte-level BPE's pre-tokenizer rules and
    // never throws. `special`: text that looks like a control token (<|im_start|>) becomes that token; user-defined
    // tokens are always recognized. Neither bos nor eos is added here.
    virtual std::vector<int32_t> encode(std::string_view text, bool special) const = 0;

    // The same with bos and eos added as the model's flags (or the override) say.
    std::vector<int32_t> tokenize(std::string_view text, bool add_bos, bool add_eos, bool special) const;

    // The bytes a token stands for; control tokens give "" unless `special`. One token may be a part of a UTF-8
    // character. Throws ArgumentError for an id outside [0, n_vocab).
    virtual std::string_view piece(int32_t token, bool special) const = 0;

    // Bytes of a sequence, with the leading space that a SentencePiece model prefixed taken off again.
    virtual std::string detokenize(const int32_t * tokens, size_t n_tokens, bool special) const = 0;

    int32_t n_vocab() const { return static_cast<int32_t>(spec_.tokens.size()); }
    const TokenizerSpec & spec() const { return spec_; }
    bool is_end(
        int32_t token) const;  // eos, eot, eom, or a control token known to end a turn (<|im_end|>, <end_of_turn>, ...)
    bool is_control(int32_t token) const;
    // A control token, or one of punctuation (\p{P}) alone, white space aside.
    bool is_special(int32_t token) const;

  protected:
    explicit Tokenizer(TokenizerSpec spec);
    void file_tokens(TextTable & ids);            // files every token, finds the ends; ModelError for duplicates
    TokenType checked_type(int32_t token) const;  // ArgumentError for an id outside [0, n_vocab)
    TokenizerSpec spec_;                          // types: always [n_vocab]

  private:
    std::vector<int32_t> ends_;  // sorted
};

// Holds back the bytes of an unfinished UTF-8 character. push() returns what is complete; an invalid byte becomes
// U+FFFD at once; flush() returns U+FFFD for what never became whole.
class Utf8Stream {
  public:
    std::string push(std::string_view bytes);
    std::string flush();

  private:
    std::string pending_;  // at most 3 bytes
};

}  // namespace zipcache

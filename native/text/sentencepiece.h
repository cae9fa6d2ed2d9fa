#pragma once
#include <array>
#include <string>
#include <vector>

#include "text/special_matcher.h"
#include "text/tables.h"
#include "text/tokenizer.h"

namespace zipcache {

// SentencePiece BPE: spaces are written as U+2581, and neighbours whose joined text is in the vocabulary merge, best
// score first, leftmost among equals. Characters without a token become the byte tokens <0x00> to <0xFF>, and so does
// invalid UTF-8, byte by byte. User-defined tokens are taken whole and never merge.
//
// add_space_prefix: every stretch of text between control tokens begins with a space; detokenize takes it off.
// detokenize(encode(x)) == x, except that U+2581 in x comes back as a space, and that remove_extra_whitespaces
// removes spaces.
class SentencePiece final : public Tokenizer {
  public:
    explicit SentencePiece(TokenizerSpec spec);  // as checked by Tokenizer::create

    std::vector<int32_t> encode(std::string_view text, bool special) const override;
    std::string_view piece(int32_t token, bool special) const override;
    std::string detokenize(const int32_t * tokens, size_t n_tokens, bool special) const override;

  private:
    struct Run;
    void read_byte_tokens();
    void store_pieces();
    std::string normalize(std::string_view text) const;
    void encode_text(std::string_view text, std::vector<int32_t> & out) const;
    void encode_run(std::string_view run, std::vector<int32_t> & out) const;
    void split_symbols(Run & run) const;
    void merge_symbols(Run & run) const;
    void emit(const Run & run, std::string_view text, std::vector<int32_t> & out) const;
    int32_t mergeable(std::string_view text) const;  // -1: not a token that merging may form

    TextTable ids_;
    std::array<int32_t, 256> byte_ids_;
    SpecialMatcher user_defined_;  // in normalized text
    SpecialMatcher specials_;      // control tokens, and those that keep a control token from beginning inside them
    std::string bytes_;            // what the tokens stand for, one after the other
    std::vector<size_t> offsets_;  // [n_vocab + 1], into bytes_
    std::string user_texts_;       // user-defined tokens, normalized
};

}  // namespace zipcache

#pragma once
#include <array>
#include <string>
#include <vector>

#include "text/pretokenize.h"
#include "text/special_matcher.h"
#include "text/tables.h"
#include "text/tokenizer.h"

namespace zipcache {

// Byte-level BPE. A vocabulary writes each byte as one printable character (GPT-2's alphabet: "Ġ" is a space);
// merges join the bytes of a word, best rank first, leftmost among equals.
//
// detokenize(encode(x)) == x for any bytes x, except for bytes that have no token in the vocabulary (real ones may
// lack control characters): those are dropped before merging, as there is nothing that could stand for them.
class ByteBpe final : public Tokenizer {
  public:
    explicit ByteBpe(TokenizerSpec spec);  // as checked by Tokenizer::create

    std::vector<int32_t> encode(std::string_view text, bool special) const override;
    std::string_view piece(int32_t token, bool special) const override;
    std::string detokenize(const int32_t * tokens, size_t n_tokens, bool special) const override;

  private:
    struct Scratch;
    void read_merges();
    void decode_pieces();
    void encode_text(std::string_view text, Scratch & scratch, std::vector<int32_t> & out) const;
    void encode_word(std::string_view word, Scratch & scratch, std::vector<int32_t> & out) const;
    int32_t whole_word(std::string_view word) const;  // -1: not a token

    TextTable ids_;
    MergeTable merges_;
    const PreTokenizer * rules_;
    std::array<int32_t, 256> byte_ids_;          // -1: no token stands for this byte
    SpecialMatcher user_defined_, all_special_;  // recognized always; recognized when `special`
    std::string bytes_;                          // what the tokens stand for, one after the other
    std::vector<size_t> offsets_;                // [n_vocab + 1], into bytes_
};

}  // namespace zipcache

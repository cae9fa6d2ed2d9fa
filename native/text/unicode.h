#pragma once
#include <cstdint>

namespace zipcache {

// The general categories that pre-tokenizers distinguish, disjoint: \p{L}, \p{N}, \p{P} and \s of a regular expression.
enum class CharClass : uint8_t { other, letter, number, punctuation, space };

CharClass char_class(char32_t code);

}  // namespace zipcache

#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace zipcache {

constexpr char32_t replacement_character = 0xFFFD;
constexpr std::string_view replacement_utf8 = "\xEF\xBF\xBD";

enum class Utf8Status : uint8_t { valid, invalid, truncated };

// One step through UTF-8. An invalid or truncated step covers the maximal ill-formed subpart (Unicode 16, 3.9, the
// practice that Python's "replace" follows): `size` >= 1 bytes which are read together as one U+FFFD.
struct Utf8Char {
    char32_t code;
    uint32_t size;
    Utf8Status status;  // truncated: the text ends inside what may still become a character
};

// Reads the character at `pos` < text.size().
Utf8Char decode_utf8(std::string_view text, size_t pos);

bool is_utf8(std::string_view text);

}  // namespace zipcache

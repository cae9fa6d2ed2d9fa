#include "text/unicode.h"

#include <algorithm>
#include <iterator>
#include <vector>

namespace zipcache {

namespace {

struct CharRange {
    uint32_t first, last;
    CharClass kind;
};

#include "text/unicode_table.inc"

CharClass search(uint32_t code) {
    const auto after = std::upper_bound(std::begin(char_ranges), std::end(char_ranges), code,
                                        [](uint32_t value, const CharRange & range) { return value < range.first; });
    if (after == std::begin(char_ranges))
        return CharClass::other;
    const CharRange & range = *std::prev(after);
    return code <= range.last ? range.kind : CharClass::other;
}

// The basic multilingual plane is looked up directly: nearly all text lies there.
constexpr uint32_t direct_codes = 0x10000;

std::vector<CharClass> fill_direct() {
    std::vector<CharClass> out(direct_codes, CharClass::other);
    for (const CharRange & range : char_ranges) {
        for (uint32_t code = range.first; code <= range.last && code < direct_codes; code++)
            out[code] = range.kind;
    }
    return out;
}

}  // namespace

CharClass char_class(char32_t code) {
    static const std::vector<CharClass> direct = fill_direct();
    return code < direct_codes ? direct[code] : search(code);
}

}  // namespace zipcache

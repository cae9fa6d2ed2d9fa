#include "text/special_matcher.h"

#include <algorithm>

namespace zipcache {

void SpecialMatcher::add(std::string_view text, int32_t token) {
    if (!text.empty())
        entries_.emplace_back(text, token);
}

void SpecialMatcher::finish() {
    std::sort(entries_.begin(), entries_.end());
    for (const Entry & entry : entries_)
        first_[static_cast<uint8_t>(entry.first[0]) + 1]++;
    for (size_t byte = 0; byte < 256; byte++)
        first_[byte + 1] += first_[byte];
}

SpecialMatcher::Match SpecialMatcher::longest_at(std::string_view text, size_t pos) const {
    const uint8_t byte = static_cast<uint8_t>(text[pos]);
    auto low = entries_.begin() + first_[byte];
    auto high = entries_.begin() + first_[byte + 1];
    Match best;
    for (size_t depth = 1; low != high; depth++) {
        // Of the entries that share these `depth` bytes the one that ends here sorts first.
        if (low->first.size() == depth) {
            best = {low->second, pos, pos + depth};
            ++low;
        }
        if (pos + depth == text.size())
            break;
        const uint8_t next = static_cast<uint8_t>(text[pos + depth]);
        const auto byte_of = [depth](const Entry & entry) { return static_cast<uint8_t>(entry.first[depth]); };
        low = std::partition_point(low, high, [&](const Entry & entry) { return byte_of(entry) < next; });
        high = std::partition_point(low, high, [&](const Entry & entry) { return byte_of(entry) == next; });
    }
    return best;
}

SpecialMatcher::Match SpecialMatcher::find(std::string_view text, size_t pos) const {
    if (empty())
        return {};
    for (; pos < text.size(); pos++) {
        const uint8_t byte = static_cast<uint8_t>(text[pos]);
        if (first_[byte] == first_[byte + 1])
            continue;
        const Match match = longest_at(text, pos);
        if (match.token >= 0)
            return match;
    }
    return {};
}

}  // namespace zipcache

#pragma once
#include <array>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace zipcache {

// Finds tokens that are recognized in the text itself: leftmost first, the longest of those that begin there.
// The texts are kept sorted; a match narrows the range that shares a prefix byte by byte, so that text without
// the first byte of any of them costs one look-up a byte, however many there are.
class SpecialMatcher {
  public:
    struct Match {
        int32_t token = -1;  // -1: none
        size_t begin = 0, end = 0;
    };

    void add(std::string_view text, int32_t token);  // `text` must outlive the matcher; empty texts never match
    void finish();                                   // once, after the last add()

    Match longest_at(std::string_view text, size_t pos) const;  // that begins at `pos`
    Match find(std::string_view text, size_t pos) const;        // the first at or after `pos`
    bool empty() const { return entries_.empty(); }

  private:
    using Entry = std::pair<std::string_view, int32_t>;
    std::vector<Entry> entries_;  // sorted by text
    std::array<uint32_t, 257> first_ =
        {};  // [byte]: the entries that begin with it are [first_[byte], first_[byte + 1])
};

}  // namespace zipcache

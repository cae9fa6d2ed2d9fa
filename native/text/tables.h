#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

namespace zipcache {

// Text -> token id. Open addressing at a load of at most one half; the texts stay where they are.
class TextTable {
  public:
    // `texts` must outlive the table.
    explicit TextTable(const std::vector<std::string_view> & texts);

    // Returns the id that is already filed under the same text, or -1 after filing this one.
    int32_t insert(int32_t id);
    int32_t find(std::string_view text) const;   // -1 if missing
    size_t longest() const { return longest_; }  // bytes

  private:
    struct Slot {
        int32_t id = -1;
        uint32_t tag = 0;  // more bits of the hash: most mismatches never touch the text
    };
    size_t locate(std::string_view text, uint64_t hash) const;

    const std::vector<std::string_view> & texts_;
    std::vector<Slot> slots_;
    uint64_t seed_;
    size_t mask_;
    size_t longest_ = 0;
};

struct Merge {
    int32_t rank = -1;  // place in the list of merges, best first; -1: these two do not merge
    int32_t result = -1;
};

// (left id, right id) -> merge, built the same way.
class MergeTable {
  public:
    explicit MergeTable(size_t n_merges);

    void insert(int32_t left, int32_t right, Merge merge);  // the first one of a pair stays
    Merge find(int32_t left, int32_t right) const;

  private:
    struct Slot {
        uint64_t key = 0;
        Merge merge;
    };
    size_t locate(uint64_t key) const;

    std::vector<Slot> slots_;
    uint64_t seed_;
    size_t mask_;
};

}  // namespace zipcache

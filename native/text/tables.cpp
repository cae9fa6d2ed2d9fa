#include "text/tables.h"

#include <algorithm>
#include <random>

#include "text/hash.h"

namespace zipcache {

namespace {

size_t slots_for(size_t n_keys) {
    size_t n = 16;
    while (n < 2 * n_keys)
        n *= 2;
    return n;
}

uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t random_seed() {
    std::random_device device;
    return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

uint64_t hash_seed() {
    static const uint64_t seed = random_seed();
    return seed;
}

TextTable::TextTable(const std::vector<std::string_view> & texts)
    : texts_(texts), slots_(slots_for(texts.size())), seed_(hash_seed()), mask_(slots_.size() - 1) {}

size_t TextTable::locate(std::string_view text, uint64_t hash) const {
    const uint32_t tag = static_cast<uint32_t>(hash >> 32);
    size_t at = hash & mask_;
    while (slots_[at].id >= 0 && (slots_[at].tag != tag || texts_[slots_[at].id] != text))
        at = (at + 1) & mask_;
    return at;
}

int32_t TextTable::insert(int32_t id) {
    const std::string_view text = texts_[id];
    const uint64_t hash = hash_bytes(text, seed_);
    Slot & slot = slots_[locate(text, hash)];
    if (slot.id >= 0)
        return slot.id;
    slot = {id, static_cast<uint32_t>(hash >> 32)};
    longest_ = std::max(longest_, text.size());
    return -1;
}

int32_t TextTable::find(std::string_view text) const {
    if (text.size() > longest_)
        return -1;
    return slots_[locate(text, hash_bytes(text, seed_))].id;
}

MergeTable::MergeTable(size_t n_merges) : slots_(slots_for(n_merges)), seed_(hash_seed()), mask_(slots_.size() - 1) {}

size_t MergeTable::locate(uint64_t key) const {
    size_t at = mix_bits(key ^ seed_) & mask_;
    while (slots_[at].merge.rank >= 0 && slots_[at].key != key)
        at = (at + 1) & mask_;
    return at;
}

void MergeTable::insert(int32_t left, int32_t right, Merge merge) {
    const uint64_t key = pair_key(left, right);
    Slot & slot = slots_[locate(key)];
    if (slot.merge.rank < 0)
        slot = {key, merge};
}

Merge MergeTable::find(int32_t left, int32_t right) const {
    return slots_[locate(pair_key(left, right))].merge;
}

}  // namespace zipcache

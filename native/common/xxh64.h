#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

namespace zipcache {

// XXH64 with seed 0 (xxHash, doc/xxhash_spec.md) of bytes that come piece by piece. For damage and for telling things
// apart, not against forgery. Words are read as the machine stores them: the standard's values on little-endian ones.
class Xxh64 {
  public:
    void update(const void * data, size_t n_bytes);
    template <class T>
    void value(T value) {
        update(&value, sizeof value);
    }
    uint64_t sum() const;

  private:
    static constexpr size_t kStripe = 32;  // bytes
    void stripe(const uint8_t * bytes);

    std::array<uint64_t, 4> lanes_ = {0x60EA27EEADC0B5D6, 0xC2B2AE3D27D4EB4F, 0, 0x61C8864E7A143579};
    std::array<uint8_t, kStripe> rest_ = {};  // of the last, incomplete stripe
    size_t n_rest_ = 0;
    uint64_t n_bytes_ = 0;
};

}  // namespace zipcache

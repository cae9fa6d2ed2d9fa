#pragma once
#include <cstdint>
#include <cstring>
#include <string_view>

namespace zipcache {

inline uint64_t mix_bits(uint64_t x) {
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93u;
    return x ^ x >> 32;
}

// Differs from run to run, so that no file can be made whose keys all fall into one slot of a table.
uint64_t hash_seed();

inline uint64_t hash_bytes(std::string_view bytes, uint64_t seed) {
    uint64_t h = seed ^ bytes.size();
    const char * p = bytes.data();
    size_t left = bytes.size();
    for (; left >= 8; left -= 8, p += 8) {
        uint64_t word;
        std::memcpy(&word, p, 8);
        h = mix_bits(h ^ word);
    }
    uint64_t word = 0;
    if (left > 0)
        std::memcpy(&word, p, left);
    return mix_bits(h ^ word);
}

}  // namespace zipcache

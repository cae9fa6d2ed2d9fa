#include "common/xxh64.h"

#include <algorithm>
#include <cstring>

namespace zipcache {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87, kPrime2 = 0xC2B2AE3D27D4EB4F, kPrime3 = 0x165667B19E3779F9,
                   kPrime4 = 0x85EBCA77C2B2AE63, kPrime5 = 0x27D4EB2F165667C5;

constexpr uint64_t rotate_left(uint64_t x, int n) {
    return x << n | x >> (64 - n);
}

constexpr uint64_t round(uint64_t lane, uint64_t word) {
    return rotate_left(lane + word * kPrime2, 31) * kPrime1;
}

template <class T>
T load(const uint8_t * bytes) {
    T word;
    std::memcpy(&word, bytes, sizeof word);
    return word;
}

}  // namespace

void Xxh64::stripe(const uint8_t * bytes) {
    for (size_t i = 0; i < lanes_.size(); ++i) {
        lanes_[i] = round(lanes_[i], load<uint64_t>(bytes + 8 * i));
    }
}

void Xxh64::update(const void * data, size_t n_bytes) {
    const auto * bytes = static_cast<const uint8_t *>(data);
    n_bytes_ += n_bytes;
    if (n_rest_ > 0) {
        const size_t n = std::min(n_bytes, kStripe - n_rest_);
        std::copy_n(bytes, n, rest_.begin() + n_rest_);
        n_rest_ += n;
        bytes += n;
        n_bytes -= n;
        if (n_rest_ < kStripe) {
            return;
        }
        stripe(rest_.data());
    }
    for (; n_bytes >= kStripe; n_bytes -= kStripe, bytes += kStripe) {
        stripe(bytes);
    }
    std::copy_n(bytes, n_bytes, rest_.begin());
    n_rest_ = n_bytes;
}

uint64_t Xxh64::sum() const {
    uint64_t h = kPrime5;
    if (n_bytes_ >= kStripe) {
        h = rotate_left(lanes_[0], 1) + rotate_left(lanes_[1], 7) + rotate_left(lanes_[2], 12) +
            rotate_left(lanes_[3], 18);
        for (uint64_t lane : lanes_) {
            h = (h ^ round(0, lane)) * kPrime1 + kPrime4;
        }
    }
    h += n_bytes_;
    const uint8_t * bytes = rest_.data();
    size_t left = n_rest_;
    for (; left >= 8; left -= 8, bytes += 8) {
        h = rotate_left(h ^ round(0, load<uint64_t>(bytes)), 27) * kPrime1 + kPrime4;
    }
    if (left >= 4) {
        h = rotate_left(h ^ load<uint32_t>(bytes) * kPrime1, 23) * kPrime2 + kPrime3;
        left -= 4;
        bytes += 4;
    }
    for (; left > 0; --left, ++bytes) {
        h = rotate_left(h ^ *bytes * kPrime5, 11) * kPrime1;
    }
    h = (h ^ h >> 33) * kPrime2;
    h = (h ^ h >> 29) * kPrime3;
    return h ^ h >> 32;
}

}  // namespace zipcache

#pragma once
#include <cstdint>
#include <iterator>
#include <map>
#include <random>

#include "check.h"

// Gets pieces of random sizes, in bytes, and gives some back, in the end all: those that are out never overlap.
// allocate(n_bytes) -> where it begins; release(where)
template <class Allocate, class Release>
void check_pieces_are_apart(std::mt19937 & random, const Allocate & allocate, const Release & release) {
    std::map<uintptr_t, size_t> pieces;
    for (int i = 0; i < 2000; ++i) {
        if (pieces.empty() || random() % 5 < 3) {
            const size_t n_bytes = random() % 3 == 0 ? random() % 700000 : random() % 3000;
            const uintptr_t piece = allocate(n_bytes);
            const auto after = pieces.lower_bound(piece);
            CHECK(after == pieces.end() || piece + n_bytes <= after->first);
            CHECK(after == pieces.begin() || std::prev(after)->first + std::prev(after)->second <= piece);
            CHECK(pieces.try_emplace(piece, n_bytes).second);
        } else {
            const auto gone = std::next(pieces.begin(), random() % pieces.size());
            release(gone->first);
            pieces.erase(gone);
        }
    }
    for (const auto & [piece, n_bytes] : pieces) {
        release(piece);
    }
}

#pragma once
#include "kv/compress.h"

namespace zipcache {

// All tokens that a layer holds compete for staying (H2O): the newest stay, and those that got most attention.
struct Contest {
    std::vector<int64_t> position;  // [n_rows] rising: of each row in the context
    std::vector<float> score;       // [n_rows]: the attention that it has got
    int64_t begin, end;             // positions [begin, end) compete; shares are of all of them, gone or not
};

// What stays, as runs of positions one behind the other from `begin` on, each short enough for a segment.
std::vector<Kept> hold(const Policy & policy, const Contest & contest);

}  // namespace zipcache

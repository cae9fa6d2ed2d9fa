#include "device/pieces.h"

#include <algorithm>
#include <iterator>

namespace zipcache {

Pieces::Pieces(size_t n_bytes) {
    holes_[0] = n_bytes;
}

std::optional<Piece> Pieces::cut(size_t n_bytes) {
    n_bytes = whole(n_bytes);
    const auto hole = std::find_if(holes_.begin(), holes_.end(), [&](const auto & h) { return h.second >= n_bytes; });
    if (hole == holes_.end()) {
        return std::nullopt;
    }
    const auto [offset, size] = *hole;
    holes_.erase(hole);
    if (size > n_bytes) {
        holes_[offset + n_bytes] = size - n_bytes;
    }
    sizes_[offset] = n_bytes;
    return Piece{offset, n_bytes};
}

Piece Pieces::give_back(size_t offset) {
    const auto found = sizes_.find(offset);
    const Piece piece = {offset, found->second};
    sizes_.erase(found);
    size_t size = piece.n_bytes;
    auto after = holes_.lower_bound(offset);
    if (after != holes_.begin() && std::prev(after)->first + std::prev(after)->second == offset) {
        offset = std::prev(after)->first;
        size += std::prev(after)->second;
    }
    if (after != holes_.end() && offset + size == after->first) {
        size += after->second;
        holes_.erase(after);
    }
    holes_[offset] = size;
    return piece;
}

}  // namespace zipcache

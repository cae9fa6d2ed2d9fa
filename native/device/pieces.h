#pragma once
#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>

namespace zipcache {

struct Piece {
    size_t offset, n_bytes;
};

// Which bytes of a stretch of memory are whose. Each piece gets the first hole that holds it, so the end stays free.
class Pieces {
  public:
    explicit Pieces(size_t n_bytes);
    // What a piece takes of it.
    static size_t whole(size_t n_bytes) { return (std::max<size_t>(n_bytes, 1) + kAlign - 1) / kAlign * kAlign; }

    // A new piece; its offset and its size are multiples of kAlign. None where no hole holds it.
    std::optional<Piece> cut(size_t n_bytes);
    // Takes back, and returns, the piece that begins there.
    Piece give_back(size_t offset);
    bool empty() const { return sizes_.empty(); }

  private:
    static constexpr size_t kAlign = 256;  // bytes

    std::map<size_t, size_t> holes_;  // offset, bytes
    std::map<size_t, size_t> sizes_;  // of pieces: offset, bytes
};

}  // namespace zipcache

#include "device/pieces.h"
#include "pieces_sample.h"

using namespace zipcache;

namespace {

constexpr size_t kNowhere = ~size_t(0);

size_t offset_of_new(Pieces & pieces, size_t n_bytes) {
    const auto piece = pieces.cut(n_bytes);
    return piece ? piece->offset : kNowhere;
}

}  // namespace

TEST(pieces_are_apart_and_what_is_given_back_is_one_hole_again) {
    constexpr size_t kBytes = size_t(1) << 30;
    Pieces pieces(kBytes);
    std::mt19937 random(test_seed());
    std::map<size_t, size_t> sizes;
    auto cut = [&](size_t n_bytes) {
        const auto piece = pieces.cut(n_bytes);
        CHECK(piece && piece->offset % 256 == 0 && piece->n_bytes == Pieces::whole(n_bytes));
        CHECK(piece->offset + piece->n_bytes <= kBytes);
        sizes[piece->offset] = piece->n_bytes;
        return uintptr_t(piece->offset);
    };
    check_pieces_are_apart(random, cut,
                           [&](uintptr_t at) { CHECK(pieces.give_back(at).n_bytes == sizes[at] && sizes[at] > 0); });
    CHECK(pieces.empty());
    CHECK(offset_of_new(pieces, kBytes + 1) == kNowhere);
    CHECK(offset_of_new(pieces, kBytes) == 0 && offset_of_new(pieces, 1) == kNowhere);
}

TEST(a_piece_gets_the_first_hole_that_holds_it) {
    Pieces pieces(10240);
    for (size_t at = 0; at < 10240; at += 1024) {
        CHECK(offset_of_new(pieces, 1000) == at);
    }
    for (size_t at : {1024, 4096, 5120}) {
        pieces.give_back(at);
    }
    CHECK(offset_of_new(pieces, 2000) == 4096);
    CHECK(offset_of_new(pieces, 1) == 1024);
    CHECK(offset_of_new(pieces, 769) == kNowhere);
    CHECK(offset_of_new(pieces, 768) == 1280);
}

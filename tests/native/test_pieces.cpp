#include "device/pieces.h"
#include "pieces_sample.h"

using namespace zipcache;

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
    CHECK(!pieces.cut(kBytes + 1));
    CHECK(pieces.cut(kBytes)->offset == 0 && !pieces.cut(1));
}

TEST(a_piece_gets_the_first_hole_that_holds_it) {
    Pieces pieces(10240);
    for (size_t at = 0; at < 10240; at += 1024) {
        CHECK(pieces.cut(1000)->offset == at);
    }
    for (size_t at : {1024, 4096, 5120}) {
        pieces.give_back(at);
    }
    CHECK(pieces.cut(2000)->offset == 4096);
    CHECK(pieces.cut(1)->offset == 1024);
    CHECK(pieces.cut(769) == std::nullopt);
    CHECK(pieces.cut(768)->offset == 1280);
}

#include <filesystem>
#include <fstream>

#include "check.h"
#include "common/atomic_file.h"
#include "common/byte_stream.h"

using namespace zipcache;

namespace {

uint64_t hash_in_pieces(const std::string & text, size_t piece) {
    Xxh64 hash;
    for (size_t at = 0; at < text.size(); at += piece) {
        hash.update(text.data() + at, std::min(piece, text.size() - at));
    }
    return hash.sum();
}

std::string content(const std::filesystem::path & path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace

TEST(xxh64_of_known_texts_and_any_pieces) {
    CHECK(hash_in_pieces("", 1) == 0xEF46DB3751D8E999);
    CHECK(hash_in_pieces("a", 1) == 0xD24EC4F1A98C6E5B);
    CHECK(hash_in_pieces("abc", 3) == 0x44BC2CF5AD770999);
    std::string text;
    for (size_t size : {31, 32, 33, 64, 100, 1000}) {
        text.resize(size, 'x');
        for (size_t piece : {1, 7, 32, 45}) {
            CHECK(hash_in_pieces(text, piece) == hash_in_pieces(text, size));
        }
    }
}

TEST(an_atomic_file_appears_when_committed) {
    const auto folder = std::filesystem::temp_directory_path() / "zipcache-test-atomic";
    std::filesystem::create_directory(folder);
    const auto path = folder / "file";
    for (const char * text : {"first", "second"}) {
        AtomicFile file(path.u8string());
        file.write(text, std::strlen(text));
        CHECK(content(path) != text);
        file.commit();
        CHECK(content(path) == text);
    }
    {
        AtomicFile file(path.u8string());
        file.write("lost", 4);
    }
    CHECK(content(path) == "second");
    CHECK(std::distance(std::filesystem::directory_iterator(folder), {}) == 1);
    CHECK_THROWS(AtomicFile((folder / "none" / "file").u8string()), FileError, "cannot write");
    std::filesystem::remove_all(folder);
}

TEST(a_byte_reader_gives_no_more_than_there_is) {
    const uint8_t data[12] = {1};
    ByteReader in(data, sizeof data, "x.bin");
    CHECK(in.integer("n", 0, 5) == 1 && in.left() == 4);
    CHECK_THROWS(in.value<uint64_t>("a number"), FileError, "x.bin is damaged: it ends within a number");
    CHECK_THROWS(in.array<float>(int64_t(1) << 62, "floats"), FileError, "it ends within floats");
    CHECK_THROWS(in.array<float>(-1, "floats"), FileError, "it ends within floats");
    CHECK(in.array<float>(1, "floats").size() == 1 && in.left() == 0);
}

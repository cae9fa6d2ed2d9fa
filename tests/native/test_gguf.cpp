#include "check.h"
#include "common/error.h"
#include "gguf_bytes.h"
#include "model/gguf_file.h"

using namespace zipcache;

namespace {

std::shared_ptr<GgufFile> parse(const GgufBytes & file) {
    return GgufFile::parse(reinterpret_cast<const uint8_t *>(file.bytes.data()), file.bytes.size(), "test.gguf");
}

struct Damage {
    const char * says;
    GgufBytes file;
};

GgufBytes entries(uint64_t n = 1) {
    return GgufBytes().header(0, n);
}
GgufBytes tensors(uint64_t n = 1) {
    return GgufBytes().header(n, 0);
}
GgufBytes text(const char * bytes) {
    return GgufBytes{bytes};
}

}  // namespace

TEST(gguf_reads_what_is_right) {
    GgufBytes bytes;
    bytes.header(2, 4, 2).entry_u32("answer", 42).text("name").u32(8).text("x\xC3\xA9");
    bytes.text("list")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("a")
        .text("")
        .text("flags")
        .u32(9)
        .u32(7)
        .u64(2)
        .raw(uint8_t(1))
        .raw(uint8_t(0));
    bytes.tensor("a", {32, 2}, 8, 0).tensor("b", {4}, 0, 96).data(96 + 16);
    const auto file = parse(bytes);
    CHECK(file->version() == 2 && file->integer("answer") == 42 && file->string("name") == "x\xC3\xA9");
    CHECK(file->strings("list").size() == 2 && file->strings("list")[0] == "a");
    CHECK((file->integers("flags") == std::vector<int64_t>{1, 0}));
    CHECK(file->find_tensor("a")->nbytes == 68 && file->find_tensor("b")->data == file->find_tensor("a")->data + 96);
    CHECK(!file->maybe_integer("missing") && file->strings("missing").empty() && !file->find_tensor("c"));
    CHECK_THROWS(file->integer("missing"), ModelError, "no key 'missing'");
    CHECK_THROWS(file->integer("name"), ModelError, "'name' is string; accepted: an integer");
    CHECK_THROWS(file->string("answer"), ModelError, "'answer' is u32; accepted: a string");
    CHECK_THROWS(file->strings("flags"), ModelError, "array of bool");
}

TEST(gguf_refuses_damage_by_name) {
    const uint64_t huge = uint64_t(1) << 62;
    const Damage cases[] = {
        {"truncated: the magic number", text("GG")},
        {"not a GGUF file", text("PK\3\4 something else")},
        {"big-endian", GgufBytes().header(0, 0, 0x03000000)},
        {"GGUF version 1", GgufBytes().header(0, 0, 1)},
        {"GGUF version 4", GgufBytes().header(0, 0, 4)},
        {"the number of tensors is 4611686018427387904", GgufBytes().header(huge, 0)},
        {"the number of metadata entries", GgufBytes().header(0, huge)},
        {"a key is empty", entries().text("").u32(4).u32(0)},
        {"truncated: a key", entries().u64(60000).u64(0)},
        {"bytes long; accepted", entries().u64(huge).u64(0)},
        {"not valid UTF-8", entries().text("\xFF\xFE").u32(4).u32(0)},
        {"key 's' is not valid UTF-8", entries().text("s").u32(8).text("\xC3")},
        {"unknown type 13", entries().text("k").u32(13).u64(0)},
        {"array of arrays", entries().text("k").u32(9).u32(9).u64(0).u64(0)},
        {"the number of elements of key 'k'", entries().text("k").u32(9).u32(0).u64(huge)},
        {"the boolean 2", entries().text("k").u32(7).raw(uint8_t(2)).u64(0)},
        {"'k' occurs twice", entries(2).entry_u32("k", 1).entry_u32("k", 2)},
        {"general.alignment is 3", entries().entry_u32("general.alignment", 3)},
        {"general.alignment is 0", entries().entry_u32("general.alignment", 0)},
        {"a tensor has no name", tensors().tensor("", {4}, 0, 0).data(16)},
        {"accepted: at most 63", tensors().tensor(std::string(64, 'x'), {4}, 0, 0).data(16)},
        {"0 dimensions", tensors().tensor("t", {}, 0, 0).data(16)},
        {"5 dimensions", tensors().tensor("t", {1, 1, 1, 1, 1}, 0, 0).data(16)},
        {"has the dimension 0", tensors().tensor("t", {4, 0}, 0, 0).data(16)},
        {"a product below 2^63", tensors().tensor("t", {huge, huge}, 0, 0).data(16)},
        {"unknown type 999", tensors().tensor("t", {4}, 999, 0).data(16)},
        {"unknown type 4", tensors().tensor("t", {32}, 4, 0).data(16)},  // a type ggml has removed
        {"multiples of 32", tensors().tensor("t", {33}, 8, 0).data(100)},
        {"multiples of the alignment 32", tensors().tensor("t", {4}, 0, 4).data(64)},
        {"truncated: tensor 't'", tensors().tensor("t", {64}, 0, 0).data(255)},
        {"truncated: tensor 't'", tensors().tensor("t", {4}, 0, huge).data(16)},
        {"the tensor 't' occurs twice", tensors(2).tensor("t", {4}, 0, 0).tensor("t", {4}, 0, 32).data(48)},
        {"overlap", tensors(2).tensor("a", {16}, 0, 0).tensor("b", {4}, 0, 32).data(64)},
    };
    for (const Damage & damage : cases) {
        CHECK_THROWS(parse(damage.file), FileError, damage.says);
    }
}

TEST(gguf_refuses_every_truncation) {
    GgufBytes bytes;
    bytes.header(1, 2).entry_u32("answer", 42).text("list").u32(9).u32(8).u64(2).text("ab").text("c");
    bytes.tensor("a", {8}, 0, 0).data(32);
    parse(bytes);
    for (size_t n = 0; n < bytes.bytes.size(); ++n) {
        GgufBytes shorter;
        shorter.bytes = bytes.bytes.substr(0, n);
        CHECK_THROWS(parse(shorter), FileError, "test.gguf: ");
    }
}

TEST(gguf_open_names_what_is_wrong_with_the_path) {
    CHECK_THROWS(GgufFile::open("/no/such/file.gguf"), FileError, "cannot open /no/such/file.gguf");
    CHECK_THROWS(GgufFile::open("/"), FileError, "not a regular file");
}

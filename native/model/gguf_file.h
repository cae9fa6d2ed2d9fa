#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "ggml.h"

namespace zipcache {

// The value types of GGUF metadata, with the numbers the file uses.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };

const char * gguf_type_name(GgufType type);

// One metadata entry. Nothing is copied: `data` points into the file.
struct GgufEntry {
    std::string_view key;
    GgufType type;                          // for arrays: array
    GgufType element_type;                  // for arrays: the type of an element; else == type
    uint64_t count;                         // for arrays: number of elements; else 1
    const uint8_t * data;                   // scalars: the value; strings: its bytes; arrays: the first element
    std::vector<std::string_view> strings;  // the string, or the elements of an array of strings
};

struct GgufTensor {
    std::string name;
    ggml_type type;
    std::array<int64_t, 4> ne;  // elements per dimension, ne[0] contiguous; unused ones are 1
    size_t nbytes;
    const uint8_t * data;  // into the mapped file
};

// A memory-mapped GGUF file (version 2 or 3, little-endian), fully validated by open(): every count, offset and
// string lies inside the file, tensors neither overlap nor are misaligned, names are unique, strings are UTF-8.
// Throws FileError for a file that cannot be read or is damaged, ModelError for a key that is missing or of another
// type.
class GgufFile {
  public:
    static std::shared_ptr<GgufFile> open(const std::string & path);
    // Same checks on bytes in memory (tests, fuzzing); the bytes must outlive the object.
    static std::shared_ptr<GgufFile> parse(const uint8_t * data, size_t size, const std::string & name);
    ~GgufFile();
    GgufFile(const GgufFile &) = delete;
    GgufFile & operator=(const GgufFile &) = delete;

    const std::string & path() const;
    size_t size() const;           // bytes of the whole file
    const uint8_t * data() const;  // first byte of the mapping
    uint32_t version() const;
    size_t alignment() const;

    const std::vector<GgufEntry> & entries() const;
    const std::vector<GgufTensor> & tensors() const;
    const GgufEntry * find(std::string_view key) const;           // nullptr if missing
    const GgufTensor * find_tensor(std::string_view name) const;  // nullptr if missing

    // Typed access. The plain forms throw when the key is missing, the optional ones return nothing;
    // both throw when the value has another type or does not fit. Integers of any width convert when the value fits.
    std::string_view string(std::string_view key) const;
    int64_t integer(std::string_view key) const;
    double number(std::string_view key) const;  // integer or float
    std::optional<std::string_view> maybe_string(std::string_view key) const;
    std::optional<int64_t> maybe_integer(std::string_view key) const;
    std::optional<double> maybe_number(std::string_view key) const;
    std::optional<bool> maybe_boolean(std::string_view key) const;
    // Arrays. Empty when the key is missing.
    const std::vector<std::string_view> & strings(std::string_view key) const;
    std::vector<int64_t> integers(
        std::string_view key) const;  // arrays of integers or booleans; a scalar counts as one element
    std::vector<float> numbers(std::string_view key) const;

  private:
    GgufFile() = default;
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace zipcache

#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "common/atomic_file.h"
#include "common/error.h"
#include "common/xxh64.h"

namespace zipcache {

// Values one after another into a file, as they lie in memory, and the checksum of all of them.
class ByteWriter {
  public:
    explicit ByteWriter(AtomicFile & file) : file_(file) {}

    void bytes(const void * data, size_t n) {
        checksum_.update(data, n);
        if (buffer_.size() + n > kBuffer) {
            flush();
        }
        if (n > kBuffer) {
            file_.write(data, n);
        } else {
            const auto * from = static_cast<const uint8_t *>(data);
            buffer_.insert(buffer_.end(), from, from + n);
        }
    }
    template <class T>
    void value(T value) {
        static_assert(std::is_arithmetic_v<T>, "other types may have padding");
        bytes(&value, sizeof value);
    }
    template <class T, class Allocator>
    void array(const std::vector<T, Allocator> & values) {
        static_assert(std::is_arithmetic_v<T>, "other types may have padding");
        bytes(values.data(), values.size() * sizeof(T));
    }
    void flush() {
        file_.write(buffer_.data(), buffer_.size());
        buffer_.clear();
    }
    uint64_t checksum() const { return checksum_.sum(); }

  private:
    static constexpr size_t kBuffer = 1 << 20;  // bytes
    AtomicFile & file_;
    Xxh64 checksum_;
    std::vector<uint8_t> buffer_;
};

// Takes such values from bytes that nobody vouches for. Never reads, and never allocates, more than there is; whatever
// else is wrong the caller tells fail(). Both throw a FileError that names the file.
class ByteReader {
  public:
    ByteReader(const uint8_t * data, size_t size, std::string name) : at_(data), left_(size), name_(std::move(name)) {}

    size_t left() const { return left_; }
    const std::string & name() const { return name_; }
    [[noreturn]] void fail(const std::string & what) const { throw FileError(name_ + " is damaged: " + what); }

    // what: named when it is not there
    void need(uint64_t n_bytes, const char * what) const {
        if (n_bytes > left_) {
            fail("it ends within " + std::string(what));
        }
    }
    void bytes(void * to, uint64_t n_bytes, const char * what) {
        need(n_bytes, what);
        if (n_bytes > 0) {
            std::memcpy(to, at_, n_bytes);
        }
        at_ += n_bytes;
        left_ -= n_bytes;
    }
    template <class T>
    T value(const char * what) {
        T value;
        bytes(&value, sizeof value, what);
        return value;
    }
    template <class T, class Vector = std::vector<T>>
    Vector array(int64_t n, const char * what) {
        if (n < 0 || uint64_t(n) > left_ / sizeof(T)) {
            fail("it ends within " + std::string(what));
        }
        Vector values(n);
        bytes(values.data(), n * sizeof(T), what);
        return values;
    }
    // An i64 of [least, most].
    int64_t integer(const char * what, int64_t least, int64_t most) {
        const auto number = value<int64_t>(what);
        if (number < least || number > most) {
            fail(std::string(what) + " is " + std::to_string(number) + "; accepted: " + std::to_string(least) +
                 (least < most ? " to " + std::to_string(most) : ""));
        }
        return number;
    }

  private:
    const uint8_t * at_;
    size_t left_;
    std::string name_;
};

}  // namespace zipcache

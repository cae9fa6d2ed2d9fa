#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace zipcache {

// A whole file, read-only in memory. Throws FileError when it cannot be opened, is no regular file, or is empty.
class MappedFile {
  public:
    explicit MappedFile(const std::string & path);
    ~MappedFile();
    MappedFile(const MappedFile &) = delete;
    MappedFile & operator=(const MappedFile &) = delete;

    const uint8_t * data() const { return data_; }
    size_t size() const { return size_; }

  private:
    const uint8_t * data_ = nullptr;
    size_t size_ = 0;
};

// Tells the system that these bytes of a mapping will not be read again soon, so that they need not stay in memory.
void release_pages(const uint8_t * data, size_t size);

}  // namespace zipcache

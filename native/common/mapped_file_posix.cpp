#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "common/error.h"
#include "common/mapped_file.h"

namespace zipcache {
namespace {

class Descriptor {
  public:
    explicit Descriptor(const std::string & path) : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
        if (fd_ < 0) {
            throw FileError("cannot open " + path + ": " + std::strerror(errno));
        }
    }
    ~Descriptor() { ::close(fd_); }
    Descriptor(const Descriptor &) = delete;
    Descriptor & operator=(const Descriptor &) = delete;
    int get() const { return fd_; }

  private:
    int fd_;
};

}  // namespace

MappedFile::MappedFile(const std::string & path) {
    const Descriptor file(path);
    struct stat status;
    if (::fstat(file.get(), &status) != 0) {
        throw FileError("cannot read " + path + ": " + std::strerror(errno));
    }
    if (!S_ISREG(status.st_mode)) {
        throw FileError(path + " is not a regular file");
    }
    if (status.st_size == 0) {
        throw FileError(path + " is empty");
    }
    size_ = static_cast<size_t>(status.st_size);
    void * data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
    if (data == MAP_FAILED) {
        throw FileError("cannot map " + path + ": " + std::strerror(errno));
    }
    data_ = static_cast<const uint8_t *>(data);
    ::madvise(data, size_, MADV_WILLNEED);
}

MappedFile::~MappedFile() {
    ::munmap(const_cast<uint8_t *>(data_), size_);
}

void release_pages(const uint8_t * data, size_t size) {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
    if (begin < end) {
        ::madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);
    }
}

}  // namespace zipcache

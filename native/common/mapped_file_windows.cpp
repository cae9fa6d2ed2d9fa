#define NOMINMAX
#include <windows.h>

#include <filesystem>

#include "common/error.h"
#include "common/mapped_file.h"

namespace zipcache {
namespace {

class Handle {
  public:
    Handle(HANDLE handle, const std::string & path) : handle_(handle) {
        if (handle_ == INVALID_HANDLE_VALUE || handle_ == nullptr) {
            throw FileError("cannot open " + path + ": error " + std::to_string(GetLastError()));
        }
    }
    ~Handle() { CloseHandle(handle_); }
    Handle(const Handle &) = delete;
    Handle & operator=(const Handle &) = delete;
    HANDLE get() const { return handle_; }

  private:
    HANDLE handle_;
};

}  // namespace

MappedFile::MappedFile(const std::string & path) {
    const auto name = std::filesystem::u8path(path);
    const Handle file(CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ, nullptr, OPEN_EXISTING, 0, nullptr),
                      path);
    LARGE_INTEGER size;
    if (!GetFileSizeEx(file.get(), &size)) {
        throw FileError("cannot read " + path + ": error " + std::to_string(GetLastError()));
    }
    if (size.QuadPart == 0) {
        throw FileError(path + " is empty");
    }
    const Handle mapping(CreateFileMappingW(file.get(), nullptr, PAGE_READONLY, 0, 0, nullptr), path);
    size_ = static_cast<size_t>(size.QuadPart);
    data_ = static_cast<const uint8_t *>(MapViewOfFile(mapping.get(), FILE_MAP_READ, 0, 0, 0));
    if (!data_) {
        throw FileError("cannot map " + path + ": error " + std::to_string(GetLastError()));
    }
}

MappedFile::~MappedFile() {
    UnmapViewOfFile(data_);
}

// A read-only mapping's clean pages go by themselves when memory is short.
void release_pages(const uint8_t *, size_t) {}

}  // namespace zipcache

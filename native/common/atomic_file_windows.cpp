#define NOMINMAX
#include <windows.h>

#include <algorithm>
#include <atomic>
#include <filesystem>

#include "common/atomic_file.h"
#include "common/error.h"

namespace zipcache {
namespace {

constexpr int kAttempts = 1000;            // at a name that no other file has
constexpr size_t kMostAtOnce = 256 << 20;  // bytes; WriteFile counts in 32 bits

}  // namespace

struct AtomicFile::Place {
    std::string wanted;  // as the caller named it
    std::filesystem::path target;
    std::filesystem::path written;  // empty: no file to remove
    HANDLE handle = INVALID_HANDLE_VALUE;

    explicit Place(const std::string & path) : wanted(path), target(std::filesystem::u8path(path)) {
        const DWORD attributes = GetFileAttributesW(target.c_str());
        if (attributes != INVALID_FILE_ATTRIBUTES && (attributes & FILE_ATTRIBUTE_DIRECTORY) != 0) {
            throw FileError("cannot write " + wanted + ": not a regular file");
        }
        create();
    }

    ~Place() {
        close();
        if (!written.empty()) {
            DeleteFileW(written.c_str());
        }
    }
    Place(const Place &) = delete;
    Place & operator=(const Place &) = delete;

    [[noreturn]] void fail() const {
        throw FileError("cannot write " + wanted + ": error " + std::to_string(GetLastError()));
    }

    void create() {
        static std::atomic<unsigned> number{0};
        for (int i = 0; i < kAttempts && handle == INVALID_HANDLE_VALUE; ++i) {
            const auto name = target.parent_path() / (L".zipcache-" + std::to_wstring(GetCurrentProcessId()) + L"-" +
                                                      std::to_wstring(number++) + L".tmp");
            handle = CreateFileW(name.c_str(), GENERIC_WRITE, 0, nullptr, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr);
            if (handle != INVALID_HANDLE_VALUE) {
                written = name;
            } else if (GetLastError() != ERROR_FILE_EXISTS) {
                break;
            }
        }
        if (handle == INVALID_HANDLE_VALUE) {
            fail();
        }
    }

    void close() {
        if (handle != INVALID_HANDLE_VALUE) {
            CloseHandle(handle);
            handle = INVALID_HANDLE_VALUE;
        }
    }
};

AtomicFile::AtomicFile(const std::string & path) : place_(std::make_unique<Place>(path)) {}

AtomicFile::~AtomicFile() = default;

void AtomicFile::write(const void * data, size_t n_bytes) {
    const char * from = static_cast<const char *>(data);
    while (n_bytes > 0) {
        DWORD n = 0;
        if (!WriteFile(place_->handle, from, static_cast<DWORD>(std::min(n_bytes, kMostAtOnce)), &n, nullptr)) {
            place_->fail();
        }
        from += n;
        n_bytes -= n;
    }
}

void AtomicFile::commit() {
    if (!FlushFileBuffers(place_->handle)) {
        place_->fail();
    }
    place_->close();
    if (!MoveFileExW(place_->written.c_str(), place_->target.c_str(),
                     MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) {
        place_->fail();
    }
    place_->written.clear();
}

}  // namespace zipcache

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "common/atomic_file.h"
#include "common/error.h"

namespace zipcache {
namespace {

constexpr int kAttempts = 1000;  // at a name that no other file has

// Where a link leads, so that it stays a link; the path itself if nothing is there yet.
std::string resolved(const std::string & path) {
    const std::unique_ptr<char, void (*)(void *)> real(::realpath(path.c_str(), nullptr), std::free);
    return real ? real.get() : path;
}

std::string folder_of(const std::string & path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

struct AtomicFile::Place {
    std::string wanted;   // as the caller named it
    std::string target;   // where that leads
    std::string folder;   // of the target
    std::string written;  // empty: no file to remove
    int fd = -1;

    explicit Place(const std::string & path) : wanted(path), target(resolved(path)), folder(folder_of(target)) {
        struct stat status;
        const bool exists = ::stat(target.c_str(), &status) == 0;
        if (exists && !S_ISREG(status.st_mode)) {
            throw FileError("cannot write " + wanted + ": not a regular file");
        }
        create();
        if (exists) {
            ::fchmod(fd, status.st_mode & 07777);  // where that is not allowed, the usual mode will do
        }
    }

    ~Place() {
        if (fd >= 0) {
            ::close(fd);
        }
        if (!written.empty()) {
            ::unlink(written.c_str());
        }
    }
    Place(const Place &) = delete;
    Place & operator=(const Place &) = delete;

    [[noreturn]] void fail() const { throw FileError("cannot write " + wanted + ": " + std::strerror(errno)); }

    void create() {
        static std::atomic<unsigned> number{0};
        for (int i = 0; i < kAttempts && fd < 0; ++i) {
            const std::string name =
                folder + "/.zipcache-" + std::to_string(::getpid()) + "-" + std::to_string(number++) + ".tmp";
            fd = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
            if (fd >= 0) {
                written = name;
            } else if (errno != EEXIST) {
                break;
            }
        }
        if (fd < 0) {
            fail();
        }
    }

    // A rename survives a power failure once its folder is on the disk. Some file systems have no such call.
    void sync_folder() const {
        const int opened = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC);
        if (opened >= 0) {
            ::fsync(opened);
            ::close(opened);
        }
    }
};

AtomicFile::AtomicFile(const std::string & path) : place_(std::make_unique<Place>(path)) {}

AtomicFile::~AtomicFile() = default;

void AtomicFile::write(const void * data, size_t n_bytes) {
    const char * from = static_cast<const char *>(data);
    while (n_bytes > 0) {
        const ssize_t n = ::write(place_->fd, from, n_bytes);
        if (n < 0 && errno != EINTR) {
            place_->fail();
        }
        from += n > 0 ? n : 0;
        n_bytes -= n > 0 ? size_t(n) : 0;
    }
}

void AtomicFile::commit() {
    if (::fsync(place_->fd) != 0 || ::close(std::exchange(place_->fd, -1)) != 0 ||
        ::rename(place_->written.c_str(), place_->target.c_str()) != 0) {
        place_->fail();
    }
    place_->written.clear();
    place_->sync_folder();
}

}  // namespace zipcache

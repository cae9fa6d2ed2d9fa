#pragma once
#include <cstddef>
#include <memory>
#include <string>

namespace zipcache {

// A file that appears whole or not at all: written in the folder of `path` under a name of its own, and put in place of
// what is at `path` by commit(). Before that, and when anything fails, the older file stays as it was and nothing else
// is left behind. Throws FileError.
class AtomicFile {
  public:
    explicit AtomicFile(const std::string & path);
    ~AtomicFile();
    AtomicFile(const AtomicFile &) = delete;
    AtomicFile & operator=(const AtomicFile &) = delete;

    void write(const void * data, size_t n_bytes);
    void commit();  // only once its bytes are on the disk

  private:
    struct Place;  // of the system
    std::unique_ptr<Place> place_;
};

}  // namespace zipcache

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "common/pages.h"

namespace zipcache {
namespace {

constexpr size_t kSmall = size_t(512) << 10;  // below it whole pages would cost more than holes do

}  // namespace

size_t page_bytes(size_t n) {
    static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    return n < kSmall ? n : (n + page - 1) / page * page;
}

void * allocate_pages(size_t n) {
    if (n < kSmall) {
        return ::operator new(n);
    }
    void * pages = ::mmap(nullptr, page_bytes(n), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        throw std::bad_alloc();
    }
    return pages;
}

void free_pages(void * pages, size_t n) noexcept {
    if (n < kSmall) {
        ::operator delete(pages);
    } else {
        ::munmap(pages, page_bytes(n));
    }
}

void trim_heap() noexcept {
#if defined(__GLIBC__)
    ::malloc_trim(0);
#endif
}

}  // namespace zipcache

#include <new>

#include "common/pages.h"

namespace zipcache {

// Windows' heap places large allocations on pages of their own by itself.
size_t page_bytes(size_t n) {
    return n;
}

void * allocate_pages(size_t n) {
    return ::operator new(n);
}

void free_pages(void * pages, size_t) noexcept {
    ::operator delete(pages);
}

void trim_heap() noexcept {}

}  // namespace zipcache

#pragma once
#include <cstddef>
#include <vector>

namespace zipcache {

// Memory that lives long stands on pages of its own: it leaves no holes between what lives short, and goes back to the
// system when it is freed.

// Bytes that an allocation of n takes: whole pages, or n for small ones, which come from the heap.
size_t page_bytes(size_t n);
void * allocate_pages(size_t n);  // throws std::bad_alloc
void free_pages(void * pages, size_t n) noexcept;
// Gives the system back what the heap holds free, where the C library can.
void trim_heap() noexcept;

template <class T>
struct PageAllocator {
    using value_type = T;
    PageAllocator() = default;
    template <class U>
    PageAllocator(const PageAllocator<U> &) noexcept {}
    T * allocate(size_t n) { return static_cast<T *>(allocate_pages(n * sizeof(T))); }
    void deallocate(T * from, size_t n) noexcept { free_pages(from, n * sizeof(T)); }
    friend bool operator==(const PageAllocator &, const PageAllocator &) { return true; }
    friend bool operator!=(const PageAllocator &, const PageAllocator &) { return false; }
};

template <class T>
using PageVector = std::vector<T, PageAllocator<T>>;

}  // namespace zipcache

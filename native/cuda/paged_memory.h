#pragma once
#include <cuda.h>

#include <vector>

#include "device/pieces.h"

namespace zipcache::cuda {

// Memory that comes and goes with compressions: one range of addresses, of which only the pages that hold pieces have
// memory behind them. Pieces of any size lie side by side; CUDA's own pools grow by 32 MiB at a time, and what a piece
// leaves of that no other may fit. Host order is the order of the one stream that uses it: what is released here may be
// handed out again while work still waits to use it, to work behind that.
class PagedMemory {
  public:
    explicit PagedMemory(int device);  // its context is current; throws ModelError where it has no virtual memory
    ~PagedMemory();
    PagedMemory(const PagedMemory &) = delete;
    PagedMemory & operator=(const PagedMemory &) = delete;

    // Null when memory runs out.
    void * allocate(size_t n_bytes);
    void release(void * piece);
    // Of pages that hold no piece.
    size_t idle_bytes() const { return n_idle_ * page_; }
    // Gives those back. No work may be under way that used them.
    void trim();

  private:
    struct Page {
        bool has_memory = false;
        int n_pieces = 0;
    };
    bool map(size_t page);
    void unmap(size_t page);
    // The pages that a piece lies in, [first, last).
    std::pair<size_t, size_t> pages_of(size_t offset, size_t n_bytes) const;

    CUmemAllocationProp properties_ = {};
    size_t page_;  // bytes
    std::vector<Page> pages_;
    size_t n_idle_ = 0;  // pages
    Pieces pieces_;
    CUdeviceptr base_ = 0;
};

}  // namespace zipcache::cuda

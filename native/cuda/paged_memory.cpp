#include "cuda/paged_memory.h"

#include <cuda_runtime_api.h>

#include <string>

#include "common/error.h"

namespace zipcache::cuda {
namespace {

constexpr size_t kLeastPage =
    size_t(4) << 20;          // bytes: each takes the driver some time, and the last is filled in part
constexpr size_t kRange = 4;  // times the device's memory: addresses cost nothing, holes cost them

void check(CUresult result, const char * what) {
    if (result != CUDA_SUCCESS) {
        const char * why = "unknown";
        (void) cuGetErrorString(result, &why);
        throw ModelError(std::string("CUDA could not ") + what + ": " + why);
    }
}

size_t device_memory() {
    size_t free = 0, total = 0;
    check(cuMemGetInfo(&free, &total), "tell the device's memory");
    return total;
}

CUmemAllocationProp pinned_on(int device) {
    CUmemAllocationProp properties = {};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, {device}};
    return properties;
}

size_t page_bytes(const CUmemAllocationProp & properties) {
    size_t least = 0;
    check(cuMemGetAllocationGranularity(&least, &properties, CU_MEM_ALLOC_GRANULARITY_MINIMUM),
          "tell its pages; accepted: GPUs and drivers with virtual memory management");
    return (kLeastPage + least - 1) / least * least;
}

}  // namespace

PagedMemory::PagedMemory(int device)
    : properties_(pinned_on(device)),
      page_(page_bytes(properties_)),
      pages_(kRange * device_memory() / page_),
      pieces_(pages_.size() * page_) {
    check(cuMemAddressReserve(&base_, pages_.size() * page_, 0, 0, 0), "reserve addresses");
}

PagedMemory::~PagedMemory() {
    for (size_t page = 0; page < pages_.size(); ++page) {
        if (pages_[page].has_memory) {
            unmap(page);
        }
    }
    (void) cuMemAddressFree(base_, pages_.size() * page_);
}

bool PagedMemory::map(size_t page) {
    CUmemGenericAllocationHandle memory = 0;
    if (cuMemCreate(&memory, page_, &properties_, 0) != CUDA_SUCCESS) {
        return false;
    }
    const CUdeviceptr at = base_ + page * page_;
    const CUmemAccessDesc access = {properties_.location, CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
    const bool is_mapped = cuMemMap(at, page_, 0, memory, 0) == CUDA_SUCCESS;
    (void) cuMemRelease(memory);  // what is mapped keeps it
    if (!is_mapped) {
        return false;
    }
    if (cuMemSetAccess(at, page_, &access, 1) != CUDA_SUCCESS) {
        (void) cuMemUnmap(at, page_);
        return false;
    }
    return true;
}

void PagedMemory::unmap(size_t page) {
    (void) cuMemUnmap(base_ + page * page_, page_);
}

std::pair<size_t, size_t> PagedMemory::pages_of(size_t offset, size_t n_bytes) const {
    return {offset / page_, (offset + n_bytes + page_ - 1) / page_};
}

void * PagedMemory::allocate(size_t n_bytes) {
    const auto piece = pieces_.cut(n_bytes);
    if (!piece) {
        return nullptr;
    }
    const auto [first, last] = pages_of(piece->offset, piece->n_bytes);
    for (size_t page = first; page < last; ++page) {
        if (pages_[page].has_memory) {
            continue;
        }
        if (!map(page)) {
            pieces_.give_back(piece->offset);
            return nullptr;
        }
        pages_[page].has_memory = true;
        ++n_idle_;
    }
    for (size_t page = first; page < last; ++page) {
        n_idle_ -= pages_[page].n_pieces++ == 0 ? 1 : 0;
    }
    return reinterpret_cast<void *>(base_ + piece->offset);
}

void PagedMemory::release(void * at) {
    const Piece piece = pieces_.give_back(reinterpret_cast<CUdeviceptr>(at) - base_);
    const auto [first, last] = pages_of(piece.offset, piece.n_bytes);
    for (size_t page = first; page < last; ++page) {
        n_idle_ += --pages_[page].n_pieces == 0 ? 1 : 0;
    }
}

void PagedMemory::trim() {
    for (size_t page = 0; page < pages_.size() && n_idle_ > 0; ++page) {
        if (pages_[page].has_memory && pages_[page].n_pieces == 0) {
            unmap(page);
            pages_[page].has_memory = false;
            --n_idle_;
        }
    }
}

}  // namespace zipcache::cuda

#include "metal/arena.h"

#include <algorithm>
#include <iterator>

#include "common/error.h"

namespace zipcache::metal {
namespace {

constexpr size_t kLeastRegion = size_t(1) << 20;  // bytes

const char * base_of(ggml_backend_buffer_t buffer) {
    return static_cast<const char *>(ggml_backend_buffer_get_base(buffer));
}

}  // namespace

Arena::~Arena() {
    for (auto & [base, region] : regions_) {
        gpu_.release(region.gpu.buffer);
    }
}

Arena::Region * Arena::add(size_t n_bytes) {
    const GpuBuffer gpu = gpu_.allocate(n_bytes);
    if (!gpu.buffer) {
        return nullptr;
    }
    Region & region = regions_[base_of(gpu.buffer)];
    region.gpu = gpu;
    region.size = n_bytes;
    return &region;
}

ggml_backend_buffer_t Arena::allocate_buffer(size_t n_bytes) {
    const Region * region = add(n_bytes);
    return region ? region->gpu.buffer : nullptr;
}

void Arena::release_buffer(ggml_backend_buffer_t buffer) {
    regions_.erase(base_of(buffer));
    gpu_.release(buffer);
}

// Null where no region has a hole for it.
void * Arena::cut(size_t n_bytes) {
    for (auto & [base, region] : regions_) {
        if (const auto piece = region.pieces.cut(n_bytes)) {
            return const_cast<char *>(base) + piece->offset;
        }
    }
    return nullptr;
}

void * Arena::allocate(size_t n_bytes) {
    if (void * piece = cut(n_bytes)) {
        return piece;
    }
    size_t all = 0;
    for (const auto & [base, region] : regions_) {
        all += region.size;
    }
    Region * region = add(std::max({Pieces::whole(n_bytes), kLeastRegion, all / 8}));  // few however much there is
    if (!region) {
        return nullptr;
    }
    region->pieces = Pieces(region->size);
    return cut(n_bytes);
}

void Arena::release(void * piece) {
    const auto found = regions_.find(holding(piece)->first);
    Region & region = found->second;
    region.pieces.give_back(static_cast<const char *>(piece) - found->first);
    if (region.pieces.empty()) {
        release_buffer(region.gpu.buffer);
    }
}

Arena::Regions::const_iterator Arena::holding(const void * at) const {
    const auto * byte = static_cast<const char *>(at);
    const auto after = regions_.upper_bound(byte);
    if (after == regions_.begin() || byte >= std::prev(after)->first + std::prev(after)->second.size) {
        throw ModelError("Metal: an address that is not of the GPU's memory");
    }
    return std::prev(after);
}

ggml_zipcache_metal_address Arena::address(const void * at) const {
    if (!at) {
        return 0;
    }
    const auto found = holding(at);
    return found->second.gpu.address + (static_cast<const char *>(at) - found->first);
}

}  // namespace zipcache::metal

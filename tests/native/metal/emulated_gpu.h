#pragma once
#include <cstddef>

namespace zipcache::metal {

// What the emulated GPU says from now on that it has free; 0: what the host has.
void pretend_free_memory(size_t n_bytes);

}  // namespace zipcache::metal

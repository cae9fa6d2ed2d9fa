#pragma once
#include <cstddef>

namespace emulator {

// A thread of a kernel is about to touch n_bytes.
void access(const void * at, size_t n_bytes, size_t alignment, bool write);

}  // namespace emulator

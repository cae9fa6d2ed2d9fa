#pragma once
#include <cstddef>

namespace zipcache::metal {

// Our kernels, put there by ggml/cmake/flatten_metal.py.
extern const char * const kLibrarySource;  // one text
extern const unsigned char kLibrary[];     // the same compiled, where the build had Metal's compiler
extern const size_t kLibraryBytes;         // 0: it had not

}  // namespace zipcache::metal

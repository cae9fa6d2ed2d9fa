#pragma once
#include "model/gguf_file.h"

namespace zipcache {

// Tells models apart: XXH64 over the file's size, all before its tensors' data (metadata, names, types, shapes), and
// 8 evenly spaced pieces of 64 bytes of each tensor. Reads little of a big file; not proof against intent.
uint64_t fingerprint_of(const GgufFile & file);

}  // namespace zipcache

#pragma once
#include "model/gguf_file.h"
#include "text/tokenizer.h"

namespace zipcache {

// The tokenizer's tables and flags (tokenizer.ggml.*). Views point into the file.
// Throws ModelError for a file without a tokenizer, and for keys of a wrong type.
TokenizerSpec tokenizer_spec(const GgufFile & file);

}  // namespace zipcache

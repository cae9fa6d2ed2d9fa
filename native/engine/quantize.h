#pragma once
#include <string>

#include "ggml.h"
#include "graph/executor.h"

namespace zipcache {

// A matrix on its way into a model file.
struct RowsF32 {
    const float * data;  // [n_rows, n_columns]
    int64_t n_rows, n_columns;
    std::string name;  // for messages
};

// The type of that number, if quantize_rows() makes it. Throws ArgumentError.
ggml_type quantizable_type(int number);

// Bytes of the rows in this type. Throws ArgumentError when a row is no whole number of its blocks.
size_t quantized_bytes(const RowsF32 & rows, ggml_type type);

// Packs rows as ggml's own quantizer does, the same bytes on any number of threads. out: [quantized_bytes()].
// Throws ModelError for a value that the type cannot hold: NaN, infinite, or too large for its scales.
void quantize_rows(const RowsF32 & rows, ggml_type type, Executor & executor, uint8_t * out);

}  // namespace zipcache

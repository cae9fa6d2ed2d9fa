#include "model/fingerprint.h"

#include <algorithm>

#include "common/xxh64.h"

namespace zipcache {
namespace {

constexpr size_t kPieces = 8, kPiece = 64;  // bytes

}  // namespace

uint64_t fingerprint_of(const GgufFile & file) {
    const uint8_t * data_begin = file.data() + file.size();
    for (const GgufTensor & tensor : file.tensors()) {
        data_begin = std::min(data_begin, tensor.data);
    }
    Xxh64 hash;
    hash.value(uint64_t(file.size()));
    hash.update(file.data(), data_begin - file.data());
    for (const GgufTensor & tensor : file.tensors()) {
        const size_t last = tensor.nbytes - std::min(tensor.nbytes, kPiece);  // where the last piece begins
        for (size_t i = 0; i < kPieces; ++i) {
            hash.update(tensor.data + last / (kPieces - 1) * i, std::min(tensor.nbytes, kPiece));
        }
    }
    return hash.sum();
}

}  // namespace zipcache

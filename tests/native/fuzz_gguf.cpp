// libFuzzer: any bytes either parse, and every accessor then stays inside them, or raise an Error.
#include "common/error.h"
#include "model/gguf_file.h"

using namespace zipcache;

namespace {

template <class Call>
void attempt(Call call) {
    try {
        call();
    } catch (const Error &) {
    }
}

void visit(const GgufFile & file) {
    for (const GgufEntry & entry : file.entries()) {
        attempt([&] { file.integer(entry.key); });
        attempt([&] { file.number(entry.key); });
        attempt([&] { file.string(entry.key); });
        attempt([&] { file.strings(entry.key); });
        attempt([&] { file.integers(entry.key); });
        attempt([&] { file.numbers(entry.key); });
    }
    volatile uint8_t sum = 0;
    for (const GgufTensor & tensor : file.tensors()) {
        sum = uint8_t(sum + tensor.data[0] + tensor.data[tensor.nbytes - 1]);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    attempt([&] { visit(*GgufFile::parse(data, size, "fuzz")); });
    return 0;
}

// The calls that -fsanitize=thread puts before every access to memory; no runtime of that sanitizer is linked.
#include "watch.h"

#include <cstring>

// NOLINTBEGIN(bugprone-reserved-identifier): the names are the compiler's
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}

#define WATCH(n)                                \
    void __tsan_read##n(void * at) {            \
        emulator::access(at, n, n, false);      \
    }                                           \
    void __tsan_write##n(void * at) {           \
        emulator::access(at, n, n, true);       \
    }                                           \
    void __tsan_unaligned_read##n(void * at) {  \
        emulator::access(at, n, 1, false);      \
    }                                           \
    void __tsan_unaligned_write##n(void * at) { \
        emulator::access(at, n, 1, true);       \
    }

WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)

void __tsan_read_range(void * at, unsigned long n) {
    emulator::access(at, n, 1, false);
}
void __tsan_write_range(void * at, unsigned long n) {
    emulator::access(at, n, 1, true);
}

// clang's
void * __tsan_memcpy(void * to, const void * from, unsigned long n) {
    emulator::access(from, n, 1, false);
    emulator::access(to, n, 1, true);
    return std::memcpy(to, from, n);
}
void * __tsan_memset(void * to, int value, unsigned long n) {
    emulator::access(to, n, 1, true);
    return std::memset(to, value, n);
}
}
// NOLINTEND(bugprone-reserved-identifier)

// The calls that -fsanitize=thread puts before every access to memory; no runtime of that sanitizer is linked.
#include "watch.h"

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
}
// NOLINTEND(bugprone-reserved-identifier)

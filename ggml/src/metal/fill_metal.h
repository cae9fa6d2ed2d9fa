#pragma once
#include "metal/memory.h"

namespace zipcache {
namespace gpu {

// kFillWords a thread.
template <int Threads>
[[kernel]] void fill(KERNEL_ARGUMENTS(FillParams)) {
    const ulong first = ulong(group.x) * Threads * kFillWords + thread_index;
    for (ulong i = first; i < first + Threads * kFillWords && i < p.n_words; i += Threads) {
        write_at<uint>(p.to)[i] = p.word;
    }
}

}  // namespace gpu
}  // namespace zipcache

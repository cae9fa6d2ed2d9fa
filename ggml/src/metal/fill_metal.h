#pragma once
#include "metal/memory.h"

namespace zipcache {
namespace gpu {

// 16 words a thread.
template <int Threads>
[[kernel]] void fill(KERNEL_ARGUMENTS(FillParams)) {
    const ulong first = ulong(group.x) * Threads * 16 + thread_index;
    for (ulong i = first; i < first + Threads * 16 && i < p.n_words; i += Threads) {
        write_at<uint>(p.to)[i] = p.word;
    }
}

}  // namespace gpu
}  // namespace zipcache

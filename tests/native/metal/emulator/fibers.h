#pragma once
// Threads of a threadgroup as fibers: stacks of their own, one running at a time. AddressSanitizer's runtime, where the
// rest of the tests have it, warns once of a jump from a stack that it does not know; the emulator and the kernels are
// built without it (whose accesses the emulator checks itself), so nothing follows.
#include <setjmp.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulator {

class Fibers {
  public:
    static constexpr size_t kStackBytes = 256u << 10;

    // Makes n fibers that each call body(i) when they are first resumed.
    void begin(int n, void (*body)(int));
    void resume(int i);  // until it suspends or ends
    void suspend();      // by the running fiber
    int running() const { return running_; }
    bool ended(int i) const { return ended_[i]; }
    bool on_stack(const void * at) const {
        const auto * x = static_cast<const uint8_t *>(at);
        const uint8_t * first = stacks_.data() + size_t(running_) * kStackBytes;
        return x >= first && x < first + kStackBytes;
    }

  private:
    static void enter();
    std::vector<uint8_t> stacks_;
    std::vector<char> started_, ended_;
    struct Jump {
        jmp_buf at;
    };
    std::vector<Jump> jumps_;
    Jump home_;
    void (*body_)(int) = nullptr;
    int running_ = -1;
};

}  // namespace emulator

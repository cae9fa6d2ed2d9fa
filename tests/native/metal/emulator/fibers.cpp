#include "fibers.h"

#include <ucontext.h>

namespace emulator {
namespace {

Fibers * entering = nullptr;

}  // namespace

void Fibers::begin(int n, void (*body)(int)) {
    if (stacks_.size() < size_t(n) * kStackBytes) {
        stacks_.resize(size_t(n) * kStackBytes);
    }
    started_.assign(n, 0);
    ended_.assign(n, 0);
    jumps_.resize(n);
    body_ = body;
}

void Fibers::enter() {
    Fibers & fibers = *entering;
    fibers.body_(fibers.running_);
    fibers.ended_[fibers.running_] = 1;
    _longjmp(fibers.home_.at, 1);
}

// A context is made to enter a stack for the first time; from then on jumps are enough, and make no system call.
void Fibers::resume(int i) {
    running_ = i;
    if (_setjmp(home_.at) == 0) {
        if (started_[i]) {
            _longjmp(jumps_[i].at, 1);
        }
        started_[i] = 1;
        entering = this;
        ucontext_t context;
        getcontext(&context);
        context.uc_stack.ss_sp = stacks_.data() + size_t(i) * kStackBytes;
        context.uc_stack.ss_size = kStackBytes;
        context.uc_link = nullptr;
        makecontext(&context, &Fibers::enter, 0);
        setcontext(&context);
    }
    running_ = -1;
}

void Fibers::suspend() {
    if (_setjmp(jumps_[running_].at) == 0) {
        _longjmp(home_.at, 1);
    }
}

}  // namespace emulator

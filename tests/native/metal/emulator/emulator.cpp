#include "emulator.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "emulated.h"
#include "fibers.h"
#include "ggml.h"
#include "watch.h"

namespace emulator {
namespace {

constexpr uint16_t kNoThread = 0xFFFF;  // some lane of a SIMD-group function

// One access to a byte: the last write, or the last read and whether it was one of several.
struct Access {
    uint32_t group = 0;       // number of the threadgroup, over all dispatches; 0: none
    uint16_t epoch = 0;       // threadgroup barriers before it that order this memory
    uint16_t simd_epoch = 0;  // and those of its SIMD-group
    uint16_t thread = 0;
    uint8_t simd = 0;
    bool atomic = false;
    bool lanes = false;   // several lanes of that SIMD-group since its last barrier
    bool simds = false;   // several SIMD-groups since the last threadgroup barrier
    bool groups = false;  // several threadgroups in this dispatch
};

struct Shadow {
    Access write, read;
};

struct Region {
    const uint8_t * begin;
    size_t n_bytes;
    const char * name;
    std::vector<Shadow> shadow;

    bool holds(const uint8_t * at, size_t n) const { return at >= begin && at + n <= begin + n_bytes; }
};

struct Kernel {
    Body body;
    const void * function;
};

std::map<std::string, Kernel> & kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

enum class State { ready, barrier, simd };

struct Thread {
    State state = State::ready;
    const char * what = nullptr;
    Order order = Order::none;  // of the barrier that it waits at
};

// Barriers so far, by the memory they order.
struct Epochs {
    uint16_t shared = 0, device = 0;

    void pass(Order order) {
        shared = static_cast<uint16_t>(shared + (order == Order::shared));
        device = static_cast<uint16_t>(device + (order == Order::device));
    }
};

struct SimdGroup {
    Epochs epochs;
    int parity = 0;
    alignas(16) uint8_t slots[2][kLanes][kSlot] = {};
};

// The threadgroup that runs.
struct Machine {
    Fibers fibers;
    std::vector<Thread> threads;
    std::vector<SimdGroup> simds;
    std::vector<Region> buffers;
    std::vector<std::vector<Shadow>> spare;  // of forgotten buffers: what they hold is of earlier dispatches
    Region shared = {nullptr, 0, "threadgroup memory", {}};
    Region params = {nullptr, 0, "the parameters", {}};
    std::vector<uint8_t> shared_bytes;
    Region * last = nullptr;  // the buffer of the last access
    const Kernel * kernel = nullptr;
    const char * name = "";
    GroupPosition position = {};
    uint32_t group = 0, first_group = 1;  // this one; the first of this dispatch
    Epochs epochs;
    std::string error;
};

Machine & machine() {
    static Machine & m = *new Machine;  // never destroyed: buffers that tests keep to the end are forgotten then
    return m;
}

std::string place() {
    const Machine & m = machine();
    const auto & p = m.position;
    return std::string(m.name) + ", threadgroup " + std::to_string(p.x) + " " + std::to_string(p.y) + " " +
           std::to_string(p.z) + ", thread " + std::to_string(m.fibers.running());
}

// Ends the run: the fiber is left where it is, and never resumed.
[[noreturn]] void fail(const std::string & what) {
    Machine & m = machine();
    m.error = place() + ": " + what;
    while (true) {
        m.fibers.suspend();
    }
}

Region * region_of(const uint8_t * at, size_t n) {
    Machine & m = machine();
    if (m.shared.holds(at, n)) {
        return &m.shared;
    }
    if (m.last && m.last->holds(at, n)) {
        return m.last;
    }
    if (m.params.holds(at, n)) {
        return &m.params;
    }
    auto after = std::upper_bound(m.buffers.begin(), m.buffers.end(), at,
                                  [](const uint8_t * x, const Region & r) { return x < r.begin; });
    if (after == m.buffers.begin() || !std::prev(after)->holds(at, n)) {
        return nullptr;
    }
    m.last = &*std::prev(after);
    return m.last;
}

// Whether an earlier access is not known to come before what `now` does. first_group: what earlier ones did is over.
bool unordered(const Access & earlier, const Access & now, uint32_t first_group) {
    if (earlier.group < first_group || (earlier.atomic && now.atomic)) {
        return false;
    }
    if (earlier.group != now.group || earlier.groups) {
        return true;
    }
    if (earlier.epoch < now.epoch) {
        return false;
    }
    if (earlier.simd != now.simd || earlier.simds) {
        return true;
    }
    return earlier.simd_epoch == now.simd_epoch &&
           (earlier.thread != now.thread || earlier.lanes || now.thread == kNoThread);
}

void record_read(Access & read, const Access & now, uint32_t first_group) {
    Access next = now;
    if (read.group >= first_group) {
        next.groups = read.groups || read.group != now.group;
        const bool same_epoch = read.group == now.group && read.epoch == now.epoch;
        next.simds = same_epoch && (read.simds || read.simd != now.simd);
        const bool same_simd = same_epoch && read.simd == now.simd && read.simd_epoch == now.simd_epoch;
        next.lanes = same_simd && (read.lanes || read.thread != now.thread);
    }
    read = next;
}

void check(Region & region, size_t offset, size_t n_bytes, bool write, Access now) {
    const bool is_shared = &region == &machine().shared;
    const uint32_t first_group = is_shared ? now.group : machine().first_group;
    for (size_t i = offset; i < offset + n_bytes; ++i) {
        Shadow & s = region.shadow[i];
        if (is_shared && !write && s.write.group != now.group) {
            fail("reads byte " + std::to_string(i) + " of threadgroup memory before it is written");
        }
        const bool after_write = unordered(s.write, now, first_group);
        const bool after_read = write && unordered(s.read, now, first_group);
        if (after_write || after_read) {
            const Access & other = after_write ? s.write : s.read;
            fail(std::string("a race: ") + (write ? "writes" : "reads") + " byte " + std::to_string(i) + " of " +
                 region.name + " that thread " + std::to_string(other.thread) +
                 (other.group == now.group ? "" : " of another threadgroup") + (after_write ? " wrote" : " read") +
                 " with no barrier between");
        }
        if (write) {
            s.write = now;
        } else {
            record_read(s.read, now, first_group);
        }
    }
}

void access_as(const void * address, size_t n_bytes, size_t alignment, bool write, uint16_t thread, bool atomic) {
    Machine & m = machine();
    const auto * at = static_cast<const uint8_t *>(address);
    Region * region = region_of(at, n_bytes);
    if (!region) {
        fail(std::string(write ? "writes " : "reads ") + std::to_string(n_bytes) + " bytes outside every buffer");
    }
    if (reinterpret_cast<uintptr_t>(at) % alignment != 0) {
        fail("a misaligned access of " + std::to_string(n_bytes) + " bytes to " + region->name);
    }
    if (region == &m.params) {
        if (write) {
            fail("writes to the parameters");
        }
        return;
    }
    const int running = m.fibers.running();
    const auto simd = static_cast<uint8_t>(running / kLanes);
    check(*region, at - region->begin, n_bytes, write,
          {m.group, region == &m.shared ? m.epochs.shared : m.epochs.device,
           region == &m.shared ? m.simds[simd].epochs.shared : m.simds[simd].epochs.device, thread, simd, atomic, false,
           false, false});
}

void wait(State state, const char * what, Order order = Order::none) {
    Machine & m = machine();
    Thread & t = m.threads[m.fibers.running()];
    t.state = state;
    t.what = what;
    t.order = order;
    m.fibers.suspend();
}

void thread_body(int index) {
    Machine & m = machine();
    m.kernel->body(m.kernel->function, m.params.begin, m.shared_bytes.data(), m.position, uint32_t(index));
}

// Runs the lanes of a SIMD-group until all of them are at a barrier or ended.
void run_simd(int simd) {
    Machine & m = machine();
    const int first = simd * kLanes;
    while (true) {
        for (int i = first; i < first + kLanes; ++i) {
            if (!m.fibers.ended(i) && m.threads[i].state == State::ready) {
                m.fibers.resume(i);
            }
            if (!m.error.empty()) {
                return;
            }
        }
        int waiting = 0;
        const char * what = nullptr;
        for (int i = first; i < first + kLanes; ++i) {
            if (m.fibers.ended(i) || m.threads[i].state != State::simd) {
                continue;
            }
            if (waiting++ > 0 && std::strcmp(m.threads[i].what, what) != 0) {
                m.error = std::string(m.name) + ": lanes of a SIMD-group are in different functions: " + what +
                          " and " + m.threads[i].what;
            }
            what = m.threads[i].what;
        }
        if (waiting == 0 || !m.error.empty()) {
            return;
        }
        if (waiting < kLanes) {
            m.error = std::string(m.name) + ": a SIMD-group function that not all lanes reach";
            return;
        }
        m.simds[simd].parity ^= 1;
        m.simds[simd].epochs.pass(m.threads[first].order);
        for (int i = first; i < first + kLanes; ++i) {
            m.threads[i].state = State::ready;
        }
    }
}

void run_group(int n_threads) {
    Machine & m = machine();
    m.threads.assign(n_threads, {});
    m.simds.assign(n_threads / kLanes, {});
    m.epochs = {};
    ++m.group;
    m.fibers.begin(n_threads, thread_body);
    while (true) {
        for (int simd = 0; simd < n_threads / kLanes && m.error.empty(); ++simd) {
            run_simd(simd);
        }
        int ended = 0;
        for (int i = 0; i < n_threads; ++i) {
            ended += m.fibers.ended(i);
        }
        if (ended == n_threads || !m.error.empty()) {
            return;
        }
        if (ended > 0) {
            m.error = std::string(m.name) + ": a barrier that not all threads of a threadgroup reach";
            return;
        }
        m.epochs.pass(m.threads[0].order);
        for (Thread & t : m.threads) {
            t.state = State::ready;
        }
    }
}

}  // namespace

Registration::Registration(const char * name, Body body, const void * function) {
    kernels()[name] = {body, function};
}

void threadgroup_barrier(Order order) {
    wait(State::barrier, "threadgroup_barrier", order);
}

void simdgroup_barrier(Order order) {
    wait(State::simd, "simdgroup_barrier", order);
}

const uint8_t * exchange(const char * what, const void * value, size_t n_bytes) {
    Machine & m = machine();
    SimdGroup & simd = m.simds[m.fibers.running() / kLanes];
    auto & slots = simd.slots[simd.parity];
    std::memcpy(slots[lane()], value, n_bytes);
    wait(State::simd, what);
    return slots[0];
}

uint32_t lane() {
    return uint32_t(machine().fibers.running() % kLanes);
}

void load_element(void * to, const void * from, size_t n_bytes) {
    access_as(from, n_bytes, n_bytes, false, kNoThread, false);
    std::memcpy(to, from, n_bytes);
}

void store_element(void * to, const void * from, size_t n_bytes) {
    access_as(to, n_bytes, n_bytes, true, kNoThread, false);
    std::memcpy(to, from, n_bytes);
}

void access(const void * at, size_t n_bytes, size_t alignment, bool write) {
    const Fibers & fibers = machine().fibers;
    const auto & simds = machine().simds;
    const bool is_slot = at >= simds.data() && at < simds.data() + simds.size();  // the shim reads what it exchanged
    if (fibers.running() >= 0 && !fibers.on_stack(at) && !is_slot) {
        access_as(at, n_bytes, alignment, write, uint16_t(fibers.running()), false);
    }
}

uint32_t atomic(uint32_t * at, Atomic what, uint32_t operand) {
    access_as(at, sizeof *at, sizeof *at, what != Atomic::load, uint16_t(machine().fibers.running()), true);
    const uint32_t before = *at;
    switch (what) {
        case Atomic::add: *at = before + operand; break;
        case Atomic::max: *at = std::max(before, operand); break;
        case Atomic::min: *at = std::min(before, operand); break;
        case Atomic::store: *at = operand; break;
        case Atomic::load: break;
    }
    return before;
}

float to_float(uint16_t half) {
    return ggml_fp16_to_fp32(half);
}
uint16_t to_half(float x) {
    return ggml_fp32_to_fp16(x);
}

void show_buffer(const void * begin, size_t n_bytes) {
    auto & buffers = machine().buffers;
    Region region = {static_cast<const uint8_t *>(begin), n_bytes, "a buffer", {}};
    auto & spare = machine().spare;
    if (!spare.empty()) {
        region.shadow = std::move(spare.back());
        spare.pop_back();
    }
    region.shadow.resize(n_bytes);
    const auto at = std::upper_bound(buffers.begin(), buffers.end(), region.begin,
                                     [](const uint8_t * x, const Region & r) { return x < r.begin; });
    buffers.insert(at, std::move(region));
    machine().last = nullptr;
}

void forget_buffer(const void * begin) {
    auto & buffers = machine().buffers;
    const auto at = std::find_if(buffers.begin(), buffers.end(), [&](const Region & r) { return r.begin == begin; });
    machine().spare.push_back(std::move(at->shadow));
    buffers.erase(at);
    machine().last = nullptr;
}

void forget_buffers() {
    for (Region & region : machine().buffers) {
        machine().spare.push_back(std::move(region.shadow));
    }
    machine().buffers.clear();
    machine().last = nullptr;
}

bool has_kernel(const char * name) {
    return kernels().count(name) != 0;
}

void run(const ggml_zipcache_metal_dispatch & d) {
    Machine & m = machine();
    const auto found = kernels().find(d.kernel);
    if (found == kernels().end()) {
        throw EmulatorError(std::string("a kernel that does not exist: ") + d.kernel);
    }
    if (d.threads == 0 || d.threads % kLanes != 0 || d.threads > 1024 || d.threadgroup_bytes > 32768 ||
        d.threadgroup_bytes % 16 != 0 || d.params_bytes > 4096) {
        throw EmulatorError(std::string(d.kernel) + ": a dispatch that Metal refuses");
    }
    m.kernel = &found->second;
    m.name = d.kernel;
    m.error.clear();
    m.params = {static_cast<const uint8_t *>(d.params), d.params_bytes, "the parameters", {}};
    m.shared_bytes.resize(32768);
    m.shared.begin = m.shared_bytes.data();
    m.shared.n_bytes = d.threadgroup_bytes;
    m.shared.shadow.resize(32768);
    m.first_group = m.group + 1;
    for (uint32_t z = 0; z < d.groups[2]; ++z) {
        for (uint32_t y = 0; y < d.groups[1]; ++y) {
            for (uint32_t x = 0; x < d.groups[0]; ++x) {
                m.position = {x, y, z};
                std::memset(m.shared_bytes.data(), 0xFF, d.threadgroup_bytes);
                run_group(int(d.threads));
                if (!m.error.empty()) {
                    throw EmulatorError(m.error);
                }
            }
        }
    }
}

ggml_zipcache_metal_encoder encoder() {
    return {[](void *, const ggml_zipcache_metal_dispatch * d) { run(*d); }, nullptr};
}

}  // namespace emulator

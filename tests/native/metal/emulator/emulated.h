#pragma once
// What the shim calls: never inlined, and not watched itself.
#include <cstddef>
#include <cstdint>

namespace emulator {

struct GroupPosition {
    uint32_t x, y, z;
};

// How a kernel is called; index: of the thread in its threadgroup.
using Body = void (*)(const void * function, const void * params, uint8_t * shared, GroupPosition group,
                      uint32_t index);
struct Registration {
    Registration(const char * name, Body body, const void * function);
};

// Which memory a barrier orders.
enum class Order { none, device, shared };

void threadgroup_barrier(Order order);
void simdgroup_barrier(Order order);

constexpr int kLanes = 32;
constexpr size_t kSlot = 32;  // most bytes of a lane's value

// Leaves a lane's value, waits for the others, and returns all of them, [kLanes][kSlot], valid until the next call.
// what: which function it is, to be the same in all lanes.
const uint8_t * exchange(const char * what, const void * value, size_t n_bytes);
uint32_t lane();

// Accesses of a SIMD-group function to one element, by nobody knows which lane.
void load_element(void * to, const void * from, size_t n_bytes);
void store_element(void * to, const void * from, size_t n_bytes);

enum class Atomic { add, max, min, load, store };
uint32_t atomic(uint32_t * at, Atomic what, uint32_t operand);

float to_float(uint16_t half);
uint16_t to_half(float x);

}  // namespace emulator

// The interpreter of parsed PTX: blocks of warps of 32 lanes, each lane with a program counter of its own.
//
// Lanes of a warp at the same instruction run together until they diverge. Which block, warp and lanes run next is
// drawn from a seed; seed 0 runs everything in order. A lane that reaches an instruction for several lanes, such as a
// shuffle, waits until all of them have arrived. An error ends the launch with a Fault that names the kernel, the line
// of the PTX text, the block and the thread.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

// How tensor cores round (tensor_core.h). With `worst`, approximate instructions also have their largest error.
enum class Arithmetic { exact, truncating, worst };

struct Settings {
  unsigned seed = 0;
  Arithmetic arithmetic = Arithmetic::exact;
  // For Triton, in whose kernels several threads may hold copies of one element and all store it. If true, these are no
  // races: storing the value that is already there, and stores of several lanes of a warp in one instruction.
  bool copies_allowed = false;
};

struct Extent {
  unsigned x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

struct Block;

// An asynchronous copy (cp.async) that has not been waited for; until then its destination counts as undefined.
struct PendingCopy {
  uint64_t to;
  uint32_t group;  // number of the commit group, counted per thread
  std::vector<uint8_t> bytes;
};

struct Warp {
  Block* block = nullptr;
  int first_thread = 0;                             // index of lane 0 in its block
  uint32_t ready = 0, waiting = 0, finished = 0;    // masks of lanes
  std::array<uint32_t, 32> pc{};                    // program counter of each lane, an index of Program::code
  std::array<uint32_t, 32> members{};               // mask of the lanes that a waiting lane waits for
  std::array<std::vector<uint32_t>, 32> callers;    // stack of return addresses
  std::array<std::vector<PendingCopy>, 32> copies;  // asynchronous copies in flight
  std::array<uint32_t, 32> copy_group{};            // how many groups of copies were committed
  uint32_t carry = 0;                               // carry flag of add.cc and the like, one bit per lane
  uint16_t time = 0;                                // how many barriers of the whole warp have passed
  std::vector<uint64_t> frame;                      // all slots, 32 times 64 bits each
  std::vector<uint32_t> defined;                    // per slot: mask of the lanes in which it was set
  uint32_t at_pc = 0;                               // program counter of the running instruction
  int lane = 0;                                     // lane that `execute` processes, for error messages
  std::string undefined_load;                       // the last load of memory that was never written, for messages

  // The 32 values of a slot.
  template <class T>
  T* slot(uint32_t index) {
    return reinterpret_cast<T*>(&frame[std::size_t(index) * 32]);
  }
  uint32_t& predicate(uint32_t index) { return *slot<uint32_t>(index); }
};

// The running block, with what is the same for all blocks of its launch.
struct Block {
  GlobalMemory* global = nullptr;
  const Program* program = nullptr;
  const Function* kernel = nullptr;
  Settings settings;
  std::mt19937 random;
  Extent grid, index, threads;
  std::vector<Warp> warps;
  std::vector<uint8_t> shared_bytes, local_bytes, parameter_bytes;
  Segment shared, local, parameters;
  uint32_t launch_time = 0, block_time = 0, time = 0;  // when launch, block and the latest barrier began (Toucher)

  // The `count` bytes at an address, for the lane warp.lane. Throws Fault if they are out of bounds, misaligned, or
  // part of a race. `written`: the bytes that a write is about to store.
  Place access(Warp& warp, Space space, uint64_t address, uint32_t count, Use use, const uint8_t* written = nullptr);
  // The same for bytes that must have been written.
  uint8_t* access_defined(Warp& warp, Space space, uint64_t address, uint32_t count, Use use);
  Toucher toucher(const Warp& warp) const;
};

// Tag bits of generic addresses of shared and local memory; generic addresses without one are global.
constexpr uint64_t kSharedWindow = uint64_t{1} << 60, kLocalWindow = uint64_t{1} << 61;

class Machine {
 public:
  GlobalMemory memory;
  Settings settings;

  // Runs a whole grid. `parameters`: the kernel's parameters as bytes, in their PTX layout.
  void launch(Program& program, const std::string& kernel, Extent grid, Extent threads, uint64_t shared_bytes,
              const std::vector<uint8_t>& parameters);

 private:
  void run_block(Program& program, Block& block);
  bool step(Program& program, Warp& warp, unsigned quantum);
  void meet(Program& program, Warp& warp, uint32_t pc);
  bool release_barrier(Block& block);

  uint32_t clock_ = 1;       // counts launches, blocks and barriers (Toucher)
  std::vector<Warp> warps_;  // of the previous launch: kept to reuse their allocations
};

// Calls `run` for every lane in `active`; for all 32 in a loop that a compiler can turn into vectors.
template <class Run>
inline void each_lane(uint32_t active, Run run) {
  if (active == ~0u) {
    for (int lane = 0; lane < 32; ++lane) run(lane);
    return;
  }
  for (; active; active &= active - 1) run(__builtin_ctz(active));
}

}  // namespace ptx

// The machine: blocks of warps of 32 lanes, each with a program counter of its own.
//
// Lanes at one place run together until they part. Which lanes, which warp and which block come next is drawn from a
// seed; seed 0 runs everything in order. A lane that reaches an instruction for several lanes waits until all of them
// are there. A wrong step ends the launch with a Fault that names the kernel, the line, the block and the thread.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "memory.h"
#include "program.h"

namespace ptx {

// How the tensor cores round (tensor_core.h), and the error of approximate instructions.
enum class Arithmetic { exact, truncating, worst };

struct Settings {
  unsigned seed = 0;
  Arithmetic arithmetic = Arithmetic::exact;
  // Triton lets several threads hold copies of an element, and all of them store theirs: no race where it is the value
  // that is there already, nor between lanes of a warp in one store, whose copies may differ in the last bit.
  bool copies_allowed = false;
};

struct Extent {
  unsigned x = 1, y = 1, z = 1;
  uint64_t count() const { return uint64_t(x) * y * z; }
};

struct Block;

// A copy that cp.async began: until it is waited for, its bytes count as undefined.
struct PendingCopy {
  uint64_t to;
  uint32_t group;  // of this thread
  std::vector<uint8_t> bytes;
};

struct Warp {
  Block* block = nullptr;
  int first_thread = 0;
  uint32_t ready = 0, waiting = 0, finished = 0;  // lanes
  std::array<uint32_t, 32> pc{};
  std::array<uint32_t, 32> members{};  // of what a waiting lane waits for
  std::array<std::vector<uint32_t>, 32> callers;
  std::array<std::vector<PendingCopy>, 32> copies;
  std::array<uint32_t, 32> copy_group{};
  uint32_t carry = 0;             // the condition code of add.cc and the like
  uint16_t time = 0;              // barriers of the warp
  std::vector<uint64_t> frame;    // slots
  std::vector<uint32_t> defined;  // lanes, per slot
  uint32_t at_pc = 0;             // of the instruction that runs
  int lane = 0;                   // that `execute` is at, for messages
  std::string undefined_load;     // the last load of memory that nobody had written

  template <class T>
  T* slot(uint32_t index) {
    return reinterpret_cast<T*>(&frame[std::size_t(index) * 32]);
  }
  uint32_t& predicate(uint32_t index) { return *slot<uint32_t>(index); }
};

// What a launch and its blocks share.
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
  uint32_t launch_time = 0, block_time = 0, time = 0;

  // The `count` bytes at an address, checked; the lane is warp.lane. `written`: what a write is about to put there.
  Place access(Warp& warp, Space space, uint64_t address, uint32_t count, Use use, const uint8_t* written = nullptr);
  // The same for bytes that must have been written.
  uint8_t* access_defined(Warp& warp, Space space, uint64_t address, uint32_t count, Use use);
  Toucher toucher(const Warp& warp) const;
};

// Addresses of generic space: shared and local memory have windows of their own, others are global.
constexpr uint64_t kSharedWindow = uint64_t{1} << 60, kLocalWindow = uint64_t{1} << 61;

class Machine {
 public:
  GlobalMemory memory;
  Settings settings;

  // Runs a grid to its end. `parameters`: bytes in the layout of the kernel.
  void launch(Program& program, const std::string& kernel, Extent grid, Extent threads, uint64_t shared_bytes,
              const std::vector<uint8_t>& parameters);

 private:
  void run_block(Program& program, Block& block);
  bool step(Program& program, Warp& warp, unsigned quantum);
  void meet(Program& program, Warp& warp, uint32_t pc);
  bool release_barrier(Block& block);

  uint32_t clock_ = 1;
  std::vector<Warp> warps_;  // of the last block, whose memory the next one uses again
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

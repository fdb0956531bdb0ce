// Memory of the interpreter, with a record of which bytes exist, which were written, and who accessed them last.
//
// A race is two accesses to the same bytes by different threads, at least one of them a write and not both atomic, that
// nothing orders. A barrier of the block, a barrier of the warp or the end of a launch orders accesses; a shuffle does
// not, nor does the order in which blocks or lanes happen to run here. So a race is detected even if its result is
// right.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

enum class Use : uint8_t { read, write, atomic };

// Who accesses memory, and when. One clock advances at every launch, block and barrier of a block; accesses of a block
// with the same `time` lie between the same two barriers.
struct Toucher {
  uint16_t thread;                         // index in its block, below 1024
  uint16_t warp_time;                      // how many barriers its warp has passed
  uint32_t line;                           // of the PTX text
  uint32_t launch_time, block_time, time;  // when the launch, the block and the interval between barriers began
  bool collisions_allowed;                 // several lanes of a warp may store to one place in one instruction
};

// The last accesses to a word of four bytes: its last write, its last read, and its last read by an earlier block. A
// time of 0 means never.
struct History {
  uint32_t write_time = 0, read_time = 0, foreign_read_time = 0;
  uint32_t write_line = 0, read_line = 0, foreign_read_line = 0;
  uint16_t writer = 0, reader = 0;  // thread, bytes and flags, packed as memory.cpp defines
  uint16_t write_warp_time = 0, read_warp_time = 0;
};

// Memory that was accessed.
struct Place {
  uint8_t* bytes;
  uint8_t* undefined;  // per byte 1: never written, see Segment::undefined; nullptr: all are defined
  bool global;
};

// A contiguous piece of memory: an allocation, or a block's shared memory, local memory or parameters.
struct Segment {
  std::string name;
  uint64_t base = 0;  // address of the first byte
  uint64_t size = 0;
  uint8_t* bytes = nullptr;
  bool read_only = false;
  bool watched = false;            // races are checked
  bool one_block = false;          // shared memory: accesses of earlier blocks don't matter
  std::vector<uint8_t> undefined;  // per byte 1: never written; empty: all bytes are defined
  std::vector<History> history;    // one per four bytes, allocated at the first access

  // Records an access to `count` bytes at an address, which must be inside, and returns them. Throws Fault for a race
  // and for a write to read-only memory. `same`: the write doesn't change the bytes, so it races with no other write.
  Place use(uint64_t address, uint32_t count, Use use, const Toucher& who, bool same = false);
  // Marks bytes, counted from the beginning of the segment, as written or as never written.
  void define(uint64_t from, uint64_t count, bool defined);
  uint64_t count_undefined(uint64_t from, uint64_t count) const;
};

// Global memory: every allocation that kernels may touch.
class GlobalMemory {
 public:
  void add(Segment segment);  // removes allocations that overlap it
  void remove(uint64_t address);
  Segment* find(uint64_t address);               // the allocation with this address, or nullptr
  std::string describe(uint64_t address) const;  // for messages: how far away the nearest allocations are
  void clear() { segments_.clear(), last_ = nullptr; }

 private:
  std::map<uint64_t, Segment> segments_;  // by base
  Segment* last_ = nullptr;               // what `find` returned last: most accesses hit the same allocation again
};

std::string hexadecimal(uint64_t value);

}  // namespace ptx

// Memory with a shadow: which bytes exist, which were written, and who touched them last.
//
// Races are found by what happened before what, not by what went wrong: two accesses by different threads, one of them
// a write and not both atomic, are ordered by a barrier of the block between them, by a barrier of the warp, or by the
// end of a launch. Nothing else orders them: neither a shuffle nor the order in which blocks or lanes happen to run.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

enum class Use : uint8_t { read, write, atomic };

// Who touches memory, and when. Times count launches, blocks and barriers of blocks, one clock for all.
struct Toucher {
  uint16_t thread;  // in its block, below 1024
  uint16_t warp_time;
  uint32_t line;
  uint32_t launch_time, block_time, time;
  bool collisions_allowed;  // between lanes of a warp in one store
};

// A word of four bytes: its last write, its last read, and its last read by an earlier block.
struct History {
  uint32_t write_time = 0, read_time = 0, foreign_read_time = 0;
  uint32_t write_line = 0, read_line = 0, foreign_read_line = 0;
  uint16_t writer = 0, reader = 0;  // with the flags of memory.cpp
  uint16_t write_warp_time = 0, read_warp_time = 0;
};

struct Place {
  uint8_t* bytes;
  uint8_t* undefined;  // as Segment::undefined; nullptr: all are defined
  bool global;
};

struct Segment {
  std::string name;
  uint64_t base = 0;  // address of the first byte
  uint64_t size = 0;
  uint8_t* bytes = nullptr;
  bool read_only = false;
  bool watched = false;            // for races
  bool one_block = false;          // shared memory: what an earlier block did is forgotten
  std::vector<uint8_t> undefined;  // per byte 1: nobody wrote it; empty: all were written
  std::vector<History> history;    // per four bytes, made at the first use

  // The bytes at an address, which is inside; throws Fault for a use that is wrong.
  // `same`: bytes that a write leaves as they are; it does not race with another write.
  Place use(uint64_t address, uint32_t count, Use use, const Toucher& who, bool same = false);
  void define(uint64_t from, uint64_t count, bool defined);
  uint64_t count_undefined(uint64_t from, uint64_t count) const;
};

// Global memory: every allocation that kernels may touch.
class GlobalMemory {
 public:
  void add(Segment segment);  // replaces what overlaps
  void remove(uint64_t address);
  Segment* find(uint64_t address);               // the allocation with this address, or nullptr
  std::string describe(uint64_t address) const;  // where the nearest allocation is
  void clear() { segments_.clear(), last_ = nullptr; }

 private:
  std::map<uint64_t, Segment> segments_;  // by base
  Segment* last_ = nullptr;
};

std::string hexadecimal(uint64_t value);

}  // namespace ptx

#include "memory.h"

#include <algorithm>
#include <cstdio>

#include "program.h"

namespace ptx {
namespace {

// Layout of History::writer and History::reader.
constexpr uint16_t kThread = 0x3ff;   // bits 0 to 9: index of the thread
constexpr uint16_t kSeveral = 0x400;  // reader: several threads have read since the last barrier
constexpr uint16_t kAtomic = 0x800;   // writer: the write was atomic
constexpr int kBytesShift = 12;       // bits 12 to 15: which of the four bytes

// True if a barrier of the warp lies between an earlier access of thread `other` and the present one.
bool ordered_by_warp(uint16_t other, uint16_t other_time, const Toucher& who) {
  return (other & kThread) / 32 == who.thread / 32 && other_time < who.warp_time;
}

[[noreturn]] void race(const Segment& segment, uint64_t address, const char* what, const char* other, uint16_t thread,
                       bool other_block, uint32_t line) {
  std::string who = other_block ? "another block" : "thread " + std::to_string(thread & kThread);
  if (thread & kSeveral) who = "several threads";
  throw Fault("race: " + std::string(what) + " " + segment.name + " at " + hexadecimal(address) + ", which " + who +
              " " + other + " at line " + std::to_string(line) + " with no barrier in between");
}

// Checks an access to one word against its history, then records it there. bytes: mask of the accessed bytes.
void note(Segment& segment, History& word, uint64_t address, unsigned bytes, Use use, const Toucher& who, bool same) {
  const uint32_t since = segment.one_block ? who.block_time : who.launch_time;  // earlier accesses are ordered
  const char* const doing = use == Use::read ? "reads" : use == Use::write ? "writes" : "atomically updates";
  // Against the last write.
  const bool harmless = same || (use == Use::atomic && (word.writer & kAtomic));
  // Several lanes of a warp store to one place in one instruction, and that is allowed.
  const bool at_once = who.collisions_allowed && use == Use::write && word.write_line == who.line &&
                       (word.writer & kThread) / 32 == who.thread / 32 && word.write_time == who.time;
  if (word.write_time >= since && (word.writer >> kBytesShift & bytes) && !harmless && !at_once) {
    const bool other_block = word.write_time < who.block_time;
    const bool other_thread =
        (word.writer & kThread) != who.thread && !ordered_by_warp(word.writer, word.write_warp_time, who);
    if (other_block || (word.write_time == who.time && other_thread)) {
      race(segment, address, doing, "wrote", static_cast<uint16_t>(word.writer & kThread), other_block,
           word.write_line);
    }
  }
  // A read is recorded; further readers between the same barriers only set kSeveral.
  if (use == Use::read) {
    if (word.read_time == who.time) {
      const bool same = (word.reader & kThread) == who.thread || ordered_by_warp(word.reader, word.read_warp_time, who);
      const uint16_t others = static_cast<uint16_t>(same ? word.reader & kSeveral : kSeveral);
      word.reader = static_cast<uint16_t>((word.reader & 0xf000) | others | who.thread | bytes << kBytesShift);
    } else {
      if (word.read_time >= since && word.read_time < who.block_time) {
        word.foreign_read_time = word.read_time, word.foreign_read_line = word.read_line;
      }
      word.reader = static_cast<uint16_t>(who.thread | bytes << kBytesShift);
    }
    word.read_time = who.time, word.read_line = who.line, word.read_warp_time = who.warp_time;
    return;
  }
  // A write is also checked against the last reads, then recorded.
  if (word.foreign_read_time >= since && word.foreign_read_time < who.block_time && word.foreign_read_time > 0) {
    race(segment, address, doing, "read", 0, true, word.foreign_read_line);
  }
  if (word.read_time >= since && (word.reader >> kBytesShift & bytes)) {
    const bool other_block = word.read_time < who.block_time;
    const bool other_thread = (word.reader & kSeveral) || ((word.reader & kThread) != who.thread &&
                                                           !ordered_by_warp(word.reader, word.read_warp_time, who));
    if (other_block || (word.read_time == who.time && other_thread)) {
      race(segment, address, doing, "read", word.reader, other_block, word.read_line);
    }
  }
  word.writer = static_cast<uint16_t>(who.thread | (use == Use::atomic ? kAtomic : 0) | bytes << kBytesShift);
  word.write_time = who.time, word.write_line = who.line, word.write_warp_time = who.warp_time;
}

}  // namespace

std::string hexadecimal(uint64_t value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

Place Segment::use(uint64_t address, uint32_t count, Use use, const Toucher& who, bool same) {
  const uint64_t from = address - base;
  if (use != Use::read && read_only)
    throw Fault("writes " + name + " at " + hexadecimal(address) + ", which is read-only");
  if (!undefined.empty() && use == Use::write)
    std::fill_n(undefined.begin() + static_cast<long>(from), count, uint8_t{0});
  if (watched) {
    if (history.empty()) history.resize(size / 4 + 1);
    for (uint64_t word = from / 4; word <= (from + count - 1) / 4; ++word) {
      const uint64_t first = std::max(from, word * 4) - word * 4,
                     last = std::min(from + count, word * 4 + 4) - word * 4;
      note(*this, history[word], base + word * 4 + first, (1u << last) - (1u << first), use, who, same);
    }
  }
  return {bytes + from, undefined.empty() ? nullptr : &undefined[from], watched && !one_block};
}

void Segment::define(uint64_t from, uint64_t count, bool defined) {
  if (undefined.empty() && !defined) undefined.assign(size, 0);
  if (!undefined.empty())
    std::fill_n(undefined.begin() + static_cast<long>(from), count, static_cast<uint8_t>(!defined));
}

uint64_t Segment::count_undefined(uint64_t from, uint64_t count) const {
  uint64_t missing = 0;
  if (undefined.empty()) return 0;
  for (uint64_t i = 0; i < count; ++i) missing += undefined[from + i];
  return missing;
}

void GlobalMemory::add(Segment segment) {
  last_ = nullptr;
  auto next = segments_.lower_bound(segment.base);
  if (next != segments_.begin()) {
    const auto before = std::prev(next);
    if (before->second.base + before->second.size > segment.base) segments_.erase(before);
  }
  while (next != segments_.end() && next->first < segment.base + std::max<uint64_t>(segment.size, 1)) {
    next = segments_.erase(next);
  }
  const uint64_t base = segment.base;
  segments_.emplace(base, std::move(segment));
}

void GlobalMemory::remove(uint64_t address) {
  last_ = nullptr;
  segments_.erase(address);
}

Segment* GlobalMemory::find(uint64_t address) {
  if (last_ != nullptr && address - last_->base < last_->size) return last_;
  auto next = segments_.upper_bound(address);
  if (next == segments_.begin()) return nullptr;
  Segment& segment = std::prev(next)->second;
  if (address - segment.base >= segment.size) return nullptr;
  return last_ = &segment;
}

std::string GlobalMemory::describe(uint64_t address) const {
  auto next = segments_.upper_bound(address);
  std::string text;
  if (next != segments_.begin()) {
    const Segment& below = std::prev(next)->second;
    text = std::to_string(address - below.base - below.size) + " bytes behind the end of " + below.name;
  }
  if (next != segments_.end()) {
    text +=
        (text.empty() ? "" : ", ") + std::to_string(next->second.base - address) + " bytes before " + next->second.name;
  }
  return text.empty() ? "no memory was allocated" : text;
}

}  // namespace ptx

// Loads, stores, atomics and asynchronous copies.
#include <algorithm>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "instructions.h"
#include "operands.h"
#include "values.h"

namespace ptx {
namespace {

// ld of one or several elements of type T. An element of which a byte was never written makes its register undefined.
template <class T>
void load(Warp& warp, const Instruction& in, u32 active) {
  const auto count = static_cast<std::size_t>(in.written);
  each_lane(active, [&](int lane) {
    warp.lane = lane;
    const uint64_t address = address_at(warp, in, count, lane);
    const Place place = warp.block->access(warp, in.space, address, static_cast<u32>(sizeof(T) * count), Use::read);
    const u8* from = place.bytes;
    for (std::size_t i = 0; i < count; ++i, from += sizeof(T)) {
      const bool undefined =
          place.undefined != nullptr &&
          std::any_of(place.undefined + i * sizeof(T), place.undefined + (i + 1) * sizeof(T), [](u8 x) { return x; });
      u32& defined = warp.defined[in.slots[i]];
      defined = (defined & ~(1u << lane)) | u32(!undefined) << lane;
      if (undefined)
        warp.undefined_load = "line " + std::to_string(in.line) + " at " + hexadecimal(address + i * sizeof(T));
      T value;
      std::memcpy(&value, from, sizeof value);
      switch (in.widths[i]) {  // a wider register: extended by sign or zeros
        case 2: warp.slot<u16>(in.slots[i])[lane] = static_cast<u16>(value); break;
        case 4: warp.slot<u32>(in.slots[i])[lane] = static_cast<u32>(value); break;
        default: warp.slot<u64>(in.slots[i])[lane] = static_cast<u64>(value); break;
      }
    }
  });
}

// st. A value that was never set leaves shared and local memory undefined; in global memory, or memory without a record
// of undefined bytes, storing it is a fault.
void store(Warp& warp, const Instruction& in, u32 active) {
  const auto count = static_cast<std::size_t>(in.read) - 1;
  each_lane(active, [&](int lane) {
    warp.lane = lane;
    u8 bytes[32];
    for (std::size_t i = 0; i < count; ++i) {
      std::memcpy(bytes + i * in.width, warp.slot<u8>(in.slots[i]) + std::size_t(lane) * in.widths[i], in.width);
    }
    const auto size = static_cast<u32>(in.width * count);
    const Place place = warp.block->access(warp, in.space, address_at(warp, in, count, lane), size, Use::write, bytes);
    std::memcpy(place.bytes, bytes, size);
    for (std::size_t i = 0; i < count; ++i) {
      if (warp.defined[in.slots[i]] >> lane & 1) continue;
      if (place.global || place.undefined == nullptr) {
        throw Fault("stores a value that was never set" +
                    (warp.undefined_load.empty()
                         ? ""
                         : ", or comes of memory that nobody has written: " + warp.undefined_load));
      }
      std::memset(place.undefined + i * in.width, 1, in.width);
    }
  });
}

// The new value of an atomic operation. b and c are its operands; only cas (compare with b, swap in c) has both.
template <class T>
T updated(const std::string& how, T old, T b, T c) {
  if (how == "add") return static_cast<T>(old + b);
  if (how == "min") return std::min(old, b);
  if (how == "max") return std::max(old, b);
  if (how == "exch") return b;
  if (how == "cas") return old == b ? c : old;
  if constexpr (std::is_integral_v<T>) {
    if (how == "and") return old & b;
    if (how == "or") return old | b;
    if (how == "xor") return old ^ b;
  }
  throw Fault("unknown atomic operation " + how);
}
const char* const kUpdates[] = {"add", "min", "max", "exch", "cas", "and", "or", "xor"};

// atom and red. options[0]: index of the operation in kUpdates.
template <class T>
void update(Warp& warp, const Instruction& in, u32 active) {
  const auto values = static_cast<std::size_t>(in.written);
  const auto place = values + static_cast<std::size_t>(in.read) - 1;
  each_lane(active, [&](int lane) {
    warp.lane = lane;
    u8* const at =
        warp.block->access_defined(warp, in.space, address_at(warp, in, place, lane), sizeof(T), Use::atomic);
    T old;
    std::memcpy(&old, at, sizeof old);
    const T b = warp.slot<T>(in.slots[values])[lane];
    const T computed =
        updated<T>(kUpdates[in.options[0]], old, b, warp.slot<T>(in.slots[std::min(values + 1, place)])[lane]);
    std::memcpy(at, &computed, sizeof computed);
    if (in.written) warp.slot<T>(in.slots[0])[lane] = old;
  });
}

// Writes the bytes of a lane's asynchronous copies to shared memory, except those of its latest `keep_groups` groups. A
// cp.async reads its source at once, but its destination counts as undefined until this point.
void finish_copies(Warp& warp, int lane, u32 keep_groups) {
  auto& copies = warp.copies[lane];
  const u32 group = warp.copy_group[lane];
  const auto arrived = [&](const PendingCopy& copy) { return group - copy.group > keep_groups; };
  for (const PendingCopy& copy : copies) {
    if (!arrived(copy)) continue;
    u8* const to =
        warp.block->access(warp, Space::shared, copy.to, static_cast<u32>(copy.bytes.size()), Use::write).bytes;
    std::memcpy(to, copy.bytes.data(), copy.bytes.size());
  }
  copies.erase(std::remove_if(copies.begin(), copies.end(), arrived), copies.end());
}

}  // namespace

void read_memory(Statement& statement, Instruction& into) {
  const bool loads = statement.opcode[0] == "ld";
  const std::string& type = statement.opcode.back();
  const int width = width_of(type);
  if (width < 1 || statement.arguments.size() != 2) statement.refuse("no such access");
  const Argument& place = statement.arguments[loads ? 1 : 0];
  for (const Argument& element : elements(statement.arguments[loads ? 0 : 1])) {
    if (loads) {
      result(statement, into, element);
    } else {
      operand(statement, into, element, width);
    }
  }
  address(statement, into, place);
  into.space = space_of(statement);
  if (into.space == Space::param && place.space == Space::local) into.space = Space::local;
  into.width = static_cast<u8>(width);
  into.settles = loads;
  const bool sign = type[0] == 's';
  into.execute = !loads       ? store
                 : width == 1 ? (sign ? load<s8> : load<u8>)
                 : width == 2 ? (sign ? load<s16> : load<u16>)
                 : width == 4 ? (sign ? load<s32> : load<u32>)
                              : load<u64>;
}

void read_atomic(Statement& statement, Instruction& into) {
  const std::string type = statement.opcode.back();
  std::size_t next = 0;
  if (statement.opcode[0] == "atom") result(statement, into, statement.arguments.at(next++));
  const Argument place = statement.arguments.at(next++);
  while (next < statement.arguments.size()) operand(statement, into, statement.arguments[next++], width_of(type));
  address(statement, into, place);
  into.needed = into.read;
  into.space = space_of(statement);
  const auto how =
      std::find_if(std::begin(kUpdates), std::end(kUpdates), [&](const char* name) { return statement.has(name); });
  if (how == std::end(kUpdates)) statement.refuse("unknown atomic operation");
  into.options[0] = static_cast<u8>(how - std::begin(kUpdates));
  into.execute = type == "u32" || type == "b32"   ? update<u32>
                 : type == "s32"                  ? update<s32>
                 : type == "u64" || type == "b64" ? update<u64>
                 : type == "s64"                  ? update<s64>
                 : type == "f32"                  ? update<f32>
                 : type == "f64"                  ? update<f64>
                                                  : nullptr;
  if (into.execute == nullptr) statement.refuse("unknown type");
}

void read_async_copy(Statement& statement, Instruction& into) {
  if (statement.has("commit_group")) {
    into.execute = [](Warp& warp, const Instruction&, u32 active) {
      each_lane(active, [&](int lane) { ++warp.copy_group[lane]; });
    };
    return;
  }
  if (statement.has("wait_group") || statement.has("wait_all")) {
    const bool all = statement.has("wait_all");
    into.offset = all ? 0 : static_cast<int64_t>(statement.arguments.at(0).bits);
    into.options[0] = all;
    into.execute = [](Warp& warp, const Instruction& in, u32 active) {
      each_lane(active, [&](int lane) {
        warp.lane = lane;
        if (in.options[0]) ++warp.copy_group[lane];
        finish_copies(warp, lane, static_cast<u32>(in.offset));
      });
    };
    return;
  }
  // The copy itself: destination, source, bytes and, optionally, how many of them to read (the others become zeros).
  const auto& arguments = statement.arguments;
  into.width = static_cast<u8>(arguments.at(2).bits);
  address(statement, into, arguments.at(1));
  const int64_t from_offset = into.offset;
  address(statement, into, arguments.at(0));
  operand(statement, into, arguments.size() > 3 ? arguments[3] : arguments[2], 4);
  into.target = static_cast<u32>(from_offset);  // offset of the source; `offset` is that of the destination
  into.needed = into.read;
  into.execute = [](Warp& warp, const Instruction& in, u32 active) {
    each_lane(active, [&](int lane) {
      warp.lane = lane;
      const u32 given = std::min<u32>(warp.slot<u32>(in.slots[2])[lane], in.width);
      const uint64_t to = address_at(warp, in, 1, lane);
      const uint64_t from = address_at(warp, in, 0, lane) - static_cast<uint64_t>(in.offset) +
                            static_cast<uint64_t>(static_cast<s32>(in.target));
      PendingCopy copy{to, warp.copy_group[lane], std::vector<u8>(in.width, 0)};
      if (given == in.width) {
        std::memcpy(copy.bytes.data(), warp.block->access_defined(warp, Space::global, from, given, Use::read), given);
      } else {
        for (u32 i = 0; i < given; ++i)
          copy.bytes[i] = *warp.block->access_defined(warp, Space::global, from + i, 1, Use::read);
      }
      warp.block->access(warp, Space::shared, to, in.width, Use::write);
      warp.block->shared.define(to, in.width, false);
      warp.copies[lane].push_back(std::move(copy));
    });
  };
}

// Copies `width` bytes and their undefined marks within the thread's local memory: from the caller's variable at
// `offset` to the function's parameter at `target` or, for a result (options[0]), back.
void copy_argument(Warp& warp, const Instruction& in, u32 active) {
  Block& block = *warp.block;
  const auto each = static_cast<std::size_t>(block.kernel->local_bytes);
  each_lane(active, [&](int lane) {
    const std::size_t thread = each * static_cast<std::size_t>(warp.first_thread + lane);
    std::size_t from = thread + static_cast<std::size_t>(in.offset), to = thread + in.target;
    if (in.options[0]) std::swap(from, to);
    std::memcpy(&block.local_bytes[to], &block.local_bytes[from], in.width);
    std::memcpy(&block.local.undefined[to], &block.local.undefined[from], in.width);
  });
}

}  // namespace ptx

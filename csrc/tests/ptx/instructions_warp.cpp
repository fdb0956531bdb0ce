// Instructions that the lanes of a warp or block execute together: shuffles, votes, reductions, barriers. `members` is
// the mask of the participating lanes, which have all arrived.
#include <algorithm>
#include <functional>
#include <string>

#include "instructions.h"
#include "operands.h"
#include "values.h"

namespace ptx {
namespace {

// The lane from which a lane reads in shfl, or -1 if that lies outside of its segment. mode: first letter of up, down,
// bfly or idx; b: lane or distance; c: segment mask and clamp, as the PTX ISA defines them.
int source_lane(char mode, u32 lane, u32 b, u32 c) {
  const u32 shift = b & 31, clamp = c & 31, segment = c >> 8 & 31;
  const u32 last = (lane & segment) | (clamp & ~segment), first = lane & segment;
  switch (mode) {
    case 'u':
      return static_cast<int>(lane) - static_cast<int>(shift) >= static_cast<int>(last) ? static_cast<int>(lane - shift)
                                                                                        : -1;
    case 'd': return lane + shift <= last ? static_cast<int>(lane + shift) : -1;
    case 'b': return (lane ^ shift) <= last ? static_cast<int>(lane ^ shift) : -1;
    default: {
      const u32 from = first | (shift & ~segment);
      return from <= last ? static_cast<int>(from) : -1;
    }
  }
}

// shfl: a lane whose source lies outside of its segment keeps its own value; the optional second result, a predicate,
// says whether it was inside.
void shuffle(Warp& warp, const Instruction& in, u32 members) {
  const auto first = static_cast<std::size_t>(in.written);
  u32 values[32];
  std::copy_n(warp.slot<u32>(in.slots[first]), 32, values);
  const u32 known = warp.defined[in.slots[first]];
  each_lane(members, [&](int lane) {
    const int from = source_lane(static_cast<char>(in.options[0]), static_cast<u32>(lane),
                                 warp.slot<u32>(in.slots[first + 1])[lane], warp.slot<u32>(in.slots[first + 2])[lane]);
    if (from >= 0 && !(members >> from & 1)) {
      warp.lane = lane;
      throw Fault("the shuffle reads lane " + std::to_string(from) + ", which is not in the mask " +
                  hexadecimal(members));
    }
    warp.slot<u32>(in.slots[0])[lane] = values[from < 0 ? lane : from];
    u32& defined = warp.defined[in.slots[0]];
    defined = (defined & ~(1u << lane)) | (known >> (from < 0 ? lane : from) & 1) << lane;
    if (in.written == 2) {
      warp.defined[in.slots[1]] |= 1u << lane;
      u32& p = warp.predicate(in.slots[1]);
      p = (p & ~(1u << lane)) | u32(from >= 0) << lane;
    }
  });
}

struct Smaller {
  template <class T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};
struct Larger {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};

// redux: the members' values combined by Join, in every member.
template <class T, class Join>
void reduce(Warp& warp, const Instruction& in, u32 members) {
  const T* const from = warp.slot<T>(in.slots[1]);
  T computed = from[__builtin_ctz(members)];
  each_lane(members & (members - 1), [&](int lane) { computed = Join{}(computed, from[lane]); });
  each_lane(members, [&](int lane) { warp.slot<T>(in.slots[0])[lane] = computed; });
}

}  // namespace

void read_shuffle(Statement& statement, Instruction& into) {
  const auto& arguments = statement.arguments;
  const std::size_t results = arguments.size() - 4;
  for (std::size_t i = 0; i < results; ++i) result(statement, into, arguments.at(i));
  for (std::size_t i = 0; i < 4; ++i) operand(statement, into, arguments.at(results + i), 4);
  into.flow = Flow::meet;
  into.members = static_cast<int16_t>(results + 3);
  into.needed = 3;
  into.settles = true;
  into.options[0] = static_cast<u8>(statement.opcode.at(2)[0]);
  into.execute = shuffle;
}

void read_vote(Statement& statement, Instruction& into) {
  const bool active_mask = statement.opcode[0] == "activemask";
  result(statement, into, statement.arguments.at(0));
  if (active_mask) {
    into.execute = [](Warp& warp, const Instruction& in, u32 active) {
      each_lane(active, [&](int lane) { warp.slot<u32>(in.slots[0])[lane] = active; });
    };
    return;
  }
  Argument vote = statement.arguments.at(1);
  into.options[1] = vote.negated;
  vote.negated = false;
  operand(statement, into, vote, 0);
  operand(statement, into, statement.arguments.at(2), 4);
  into.flow = Flow::meet;
  into.members = 2;
  into.needed = 2;
  into.options[0] = statement.has("ballot") ? 'b' : statement.has("any") ? 'y' : statement.has("all") ? 'l' : 'u';
  // options[0]: 'b'allot (the mask of the votes), an'y', a'l'l or 'u'ni (all votes are equal).
  into.execute = [](Warp& warp, const Instruction& in, u32 members) {
    const u32 p = warp.predicate(in.slots[1]), votes = (in.options[1] ? ~p : p) & members;
    if (in.options[0] == 'b') {
      each_lane(members, [&](int lane) { warp.slot<u32>(in.slots[0])[lane] = votes; });
      return;
    }
    const bool all = votes == members, any = votes != 0;
    const bool yes = in.options[0] == 'y' ? any : in.options[0] == 'l' ? all : all || !any;
    u32& to = warp.predicate(in.slots[0]);
    to = yes ? to | members : to & ~members;
  };
}

void read_reduce(Statement& statement, Instruction& into) {
  const bool sign = statement.opcode.back() == "s32";
  result(statement, into, statement.arguments.at(0));
  for (std::size_t i : {1, 2}) operand(statement, into, statement.arguments.at(i), 4);
  into.flow = Flow::meet;
  into.members = 2;
  into.needed = 2;
  into.execute = statement.has("add")   ? reduce<u32, std::plus<>>
                 : statement.has("and") ? reduce<u32, std::bit_and<>>
                 : statement.has("or")  ? reduce<u32, std::bit_or<>>
                 : statement.has("xor") ? reduce<u32, std::bit_xor<>>
                 : statement.has("min") ? (sign ? reduce<s32, Smaller> : reduce<u32, Smaller>)
                                        : (sign ? reduce<s32, Larger> : reduce<u32, Larger>);
}

void read_barrier(Statement& statement, Instruction& into) {
  if (statement.has("warp")) {
    operand(statement, into, statement.arguments.at(0), 4);
    into.flow = Flow::meet;
    into.members = 0;
    into.needed = 1;
    // Only a barrier of all 32 lanes orders memory accesses in the race check.
    into.execute = [](Warp& warp, const Instruction&, u32 members) {
      warp.time = static_cast<u16>(warp.time + (members == ~0u));
    };
    return;
  }
  if (!statement.has("sync") || statement.arguments.size() != 1 || statement.arguments[0].kind != Argument::number) {
    statement.refuse("only barriers of the whole block are known");
  }
  into.offset = static_cast<int64_t>(statement.arguments[0].bits);
  into.flow = Flow::barrier;
}

}  // namespace ptx

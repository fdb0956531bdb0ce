// setp (comparisons), selp (selection), and logic of predicates. A predicate is one bit per lane in a 32-bit mask.
#include <cmath>
#include <string>

#include "instructions.h"
#include "operands.h"
#include "values.h"

namespace ptx {
namespace {

// How setp combines the comparison with a further predicate: .and, .or, .xor.
enum class Join : u8 { none, both, either, one };

// The tests of setp. Those with the suffix _u ("unordered") are true if an operand is NaN, the others false.
template <class T>
bool unordered(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::isnan(a) || std::isnan(b);
  return false;
}
template <class T>
bool equal(T a, T b) {
  return a == b;
}
template <class T>
bool unequal(T a, T b) {
  return a != b && !unordered(a, b);
}
template <class T>
bool less(T a, T b) {
  return a < b;
}
template <class T>
bool less_equal(T a, T b) {
  return a <= b;
}
template <class T>
bool greater(T a, T b) {
  return a > b;
}
template <class T>
bool greater_equal(T a, T b) {
  return a >= b;
}
template <class T>
bool equal_u(T a, T b) {
  return a == b || unordered(a, b);
}
template <class T>
bool unequal_u(T a, T b) {
  return a != b;
}
template <class T>
bool less_u(T a, T b) {
  return !(a >= b);
}
template <class T>
bool less_equal_u(T a, T b) {
  return !(a > b);
}
template <class T>
bool greater_u(T a, T b) {
  return !(a <= b);
}
template <class T>
bool greater_equal_u(T a, T b) {
  return !(a < b);
}
template <class T>
bool numbers(T a, T b) {
  return !unordered(a, b);
}

// setp: the result and, if the instruction names two, its negation. options[0]: Join; options[1]: negates the further
// predicate.
template <class T, bool (*test)(T, T)>
void compare(Warp& warp, const Instruction& in, u32 active) {
  const auto first = static_cast<std::size_t>(in.written);
  const T *const a = warp.slot<T>(in.slots[first]), *const b = warp.slot<T>(in.slots[first + 1]);
  u32 yes = 0;
  for (int lane = 0; lane < 32; ++lane) yes |= static_cast<u32>(test(a[lane], b[lane])) << lane;
  u32 no = ~yes;
  if (static_cast<Join>(in.options[0]) != Join::none) {
    const u32 c = in.options[1] ? ~warp.predicate(in.slots[first + 2]) : warp.predicate(in.slots[first + 2]);
    const auto join = [&](u32 x) {
      return in.options[0] == u8(Join::both) ? x & c : in.options[0] == u8(Join::either) ? x | c : x ^ c;
    };
    yes = join(yes), no = join(no);
  }
  u32& to = warp.predicate(in.slots[0]);
  to = (to & ~active) | (yes & active);
  if (in.written == 2) {
    u32& other = warp.predicate(in.slots[1]);
    other = (other & ~active) | (no & active);
  }
}

// The function that executes setp with this test; nullptr for an unknown one.
template <class T>
Execute comparison(const std::string& test) {
  if (test == "eq") return compare<T, equal<T>>;
  if (test == "ne") return compare<T, unequal<T>>;
  if (test == "lt" || test == "lo") return compare<T, less<T>>;
  if (test == "le" || test == "ls") return compare<T, less_equal<T>>;
  if (test == "gt" || test == "hi") return compare<T, greater<T>>;
  if (test == "ge" || test == "hs") return compare<T, greater_equal<T>>;
  if (test == "equ") return compare<T, equal_u<T>>;
  if (test == "neu") return compare<T, unequal_u<T>>;
  if (test == "ltu") return compare<T, less_u<T>>;
  if (test == "leu") return compare<T, less_equal_u<T>>;
  if (test == "gtu") return compare<T, greater_u<T>>;
  if (test == "geu") return compare<T, greater_equal_u<T>>;
  if (test == "num") return compare<T, numbers<T>>;
  if (test == "nan") return compare<T, unordered<T>>;
  return nullptr;
}

// selp: the result is defined where the predicate and the chosen operand are; the other operand doesn't matter.
template <class T>
void select(Warp& warp, const Instruction& in, u32 active) {
  T* const to = warp.slot<T>(in.slots[0]);
  const T *const a = warp.slot<T>(in.slots[1]), *const b = warp.slot<T>(in.slots[2]);
  const u32 p = warp.predicate(in.slots[3]);
  each_lane(active, [&](int lane) { to[lane] = p >> lane & 1 ? a[lane] : b[lane]; });
  const u32 defined = warp.defined[in.slots[3]] & ((p & warp.defined[in.slots[1]]) | (~p & warp.defined[in.slots[2]]));
  warp.defined[in.slots[0]] = (warp.defined[in.slots[0]] & ~active) | (defined & active);
}

}  // namespace

void read_compare(Statement& statement, Instruction& into) {
  const std::string type = statement.opcode.back(), test = statement.opcode.at(1);
  const auto& arguments = statement.arguments;
  const int width = width_of(type);
  const bool joins = statement.has("and") || statement.has("or") || statement.has("xor");
  const std::size_t results = arguments.size() - 2 - joins;
  for (std::size_t i = 0; i < results; ++i) result(statement, into, arguments.at(i));
  for (std::size_t i = 0; i < 2; ++i) operand(statement, into, arguments.at(results + i), width);
  if (joins) {
    Argument last = arguments.back();
    into.options[1] = last.negated;
    last.negated = false;
    operand(statement, into, last, 0);
    into.options[0] = static_cast<u8>(statement.has("and")  ? Join::both
                                      : statement.has("or") ? Join::either
                                                            : Join::one);
  }
  into.execute = type == "f32"                  ? comparison<f32>(test)
                 : type == "f64"                ? comparison<f64>(test)
                 : type == "s16"                ? comparison<s16>(test)
                 : type == "s32"                ? comparison<s32>(test)
                 : type == "s64"                ? comparison<s64>(test)
                 : width == 2 && type[0] != 'f' ? comparison<u16>(test)
                 : width == 4 && type[0] != 'f' ? comparison<u32>(test)
                 : width == 8 && type[0] != 'f' ? comparison<u64>(test)
                                                : nullptr;
  if (into.execute == nullptr) statement.refuse("unknown comparison");
}

void read_select(Statement& statement, Instruction& into) {
  const int width = width_of(statement.opcode.back());
  result(statement, into, statement.arguments.at(0));
  for (std::size_t i : {1, 2}) operand(statement, into, statement.arguments.at(i), width);
  operand(statement, into, statement.arguments.at(3), 0);
  into.settles = true;
  into.execute = width == 2 ? select<u16> : width == 4 ? select<u32> : select<u64>;
}

void read_predicate_logic(Statement& statement, Instruction& into) {
  const std::string how = statement.opcode[0];
  result(statement, into, statement.arguments.at(0));
  for (std::size_t i = 1; i < statement.arguments.size(); ++i) operand(statement, into, statement.arguments[i], 0);
  into.options[0] = static_cast<u8>(how[0]);
  into.execute = [](Warp& warp, const Instruction& in, u32 active) {
    const u32 a = warp.predicate(in.slots[1]), b = in.read > 1 ? warp.predicate(in.slots[2]) : 0;
    const u32 computed = in.options[0] == 'a'   ? a & b
                         : in.options[0] == 'o' ? a | b
                         : in.options[0] == 'x' ? a ^ b
                                                : ~a;
    u32& to = warp.predicate(in.slots[0]);
    to = (to & ~active) | (computed & active);
  };
}

}  // namespace ptx

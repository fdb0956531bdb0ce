// mov (also between vectors and registers), cvta and cvt.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "instructions.h"
#include "operands.h"
#include "values.h"

namespace ptx {
namespace {

// mov of one register: the copy is defined in the lanes in which the original is.
template <class T>
void copy(Warp& warp, const Instruction& in, u32 active) {
  T* const to = warp.slot<T>(in.slots[0]);
  const T* const from = warp.slot<T>(in.slots[1]);
  each_lane(active, [&](int lane) { to[lane] = from[lane]; });
  u32& defined = warp.defined[in.slots[0]];
  defined = (defined & ~active) | (warp.defined[in.slots[1]] & active);
}

void copy_predicate(Warp& warp, const Instruction& in, u32 active) {
  u32& to = warp.predicate(in.slots[0]);
  to = (to & ~active) | (warp.predicate(in.slots[1]) & active);
  u32& defined = warp.defined[in.slots[0]];
  defined = (defined & ~active) | (warp.defined[in.slots[1]] & active);
}

// mov that packs or unpacks a vector: the bytes of all operands, one after another, are split among the results.
// options[0]: bit i is set if part i of the results is `_`, which is discarded; options[1]: bytes of each part.
void repack(Warp& warp, const Instruction& in, u32 active) {
  each_lane(active, [&](int lane) {
    u8 bytes[32];
    std::size_t at = 0;
    for (int i = 0; i < in.read; ++i) {
      const auto index = static_cast<std::size_t>(in.written + i);
      std::memcpy(bytes + at, warp.slot<u8>(in.slots[index]) + std::size_t(lane) * in.widths[index], in.widths[index]);
      at += in.widths[index];
    }
    std::size_t part = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(in.written); ++i, ++part) {
      while (in.options[0] >> part & 1) ++part;
      u8* const to = warp.slot<u8>(in.slots[i]) + std::size_t(lane) * in.widths[i];
      std::memcpy(to, bytes + part * in.options[1], in.widths[i]);
    }
  });
}

template <class T>
constexpr bool is_real = std::is_floating_point_v<T> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

enum ConversionOptions : u8 { kSaturate = 1, kToInteger = 2, kFlush = 4 };

// cvt of one value from type S to type D. Rounding follows the processor's rounding mode, which the machine has set.
template <class D, class S>
D convert(S from, u8 options) {
  if constexpr (is_real<S> && is_real<D>) {
    double x = to_double(from);
    if constexpr (std::is_same_v<S, f32>) x = options & kFlush ? flush(from) : from;
    if (options & kToInteger) x = std::nearbyint(x);
    if (options & kSaturate) x = std::isnan(x) ? 0 : std::min(std::max(x, 0.0), 1.0);
    D to = from_double<D>(x);
    if constexpr (std::is_same_v<D, f32>) to = options & kFlush ? flush(to) : to;
    return to;
  } else if constexpr (is_real<S>) {
    // Float to integer: out-of-range values saturate; NaN gives 0, or the lowest value where 64 bits are involved.
    const double x = std::nearbyint(to_double(from));
    if (std::isnan(x)) {
      constexpr bool wide = sizeof(D) == 8 || std::is_same_v<S, f64>;
      return wide ? static_cast<D>(u64{1} << (8 * sizeof(D) - 1)) : D{0};
    }
    constexpr double least = static_cast<double>(std::numeric_limits<D>::min());
    constexpr double most = static_cast<double>(std::numeric_limits<D>::max());
    return x <= least ? std::numeric_limits<D>::min() : x >= most ? std::numeric_limits<D>::max() : static_cast<D>(x);
  } else if constexpr (is_real<D>) {
    if constexpr (std::is_floating_point_v<D>) return static_cast<D>(from);
    return from_double<D>(static_cast<double>(from));
  } else {
    if (options & kSaturate) {
      const __int128 wide = from;
      const __int128 least = std::numeric_limits<D>::min(), most = std::numeric_limits<D>::max();
      return static_cast<D>(std::min(std::max(wide, least), most));
    }
    return static_cast<D>(from);
  }
}

// cvt of the active lanes. A register may be wider than the type: the operand is its low bytes, the result is extended
// by its sign or by zeros.
template <class D, class S>
void convert_lanes(Warp& warp, const Instruction& in, u32 active) {
  const u8* const from = warp.slot<u8>(in.slots[1]);
  u8* const to = warp.slot<u8>(in.slots[0]);
  each_lane(active, [&](int lane) {
    S value;
    std::memcpy(&value, from + std::size_t(lane) * in.widths[1], sizeof value);
    const D computed = convert<D, S>(value, in.options[0]);
    if constexpr (std::is_integral_v<D> && sizeof(D) < 8) {
      const s64 extended = static_cast<s64>(computed);
      std::memcpy(to + std::size_t(lane) * in.widths[0], &extended, in.widths[0]);
    } else {
      std::memcpy(to + std::size_t(lane) * in.widths[0], &computed, sizeof computed);
    }
  });
}

// The conversion from a type, given by its PTX name, to D; nullptr if there is none.
template <class D>
Execute converter_to(const std::string& from) {
#define FROM(type) \
  if (from == #type) return convert_lanes<D, type>
  FROM(u8);
  FROM(s8);
  FROM(u16);
  FROM(s16);
  FROM(u32);
  FROM(s32);
  FROM(u64);
  FROM(s64);
  FROM(f16);
  FROM(bf16);
  FROM(f32);
  FROM(f64);
#undef FROM
  return nullptr;
}
Execute converter(const std::string& to, const std::string& from) {
#define TO(type) \
  if (to == #type) return converter_to<type>(from)
  TO(u8);
  TO(s8);
  TO(u16);
  TO(s16);
  TO(u32);
  TO(s32);
  TO(u64);
  TO(s64);
  TO(f16);
  TO(bf16);
  TO(f32);
  TO(f64);
#undef TO
  return nullptr;
}

// cvt to .f16x2 or .bf16x2: two float32 become one register, the first operand its upper half.
template <class D>
void convert_pair(Warp& warp, const Instruction& in, u32 active) {
  each_lane(active, [&](int lane) {
    const D high = from_double<D>(warp.slot<f32>(in.slots[1])[lane]),
            low = from_double<D>(warp.slot<f32>(in.slots[2])[lane]);
    warp.slot<u32>(in.slots[0])[lane] = static_cast<u32>(high.bits) << 16 | low.bits;
  });
}

}  // namespace

void read_move(Statement& statement, Instruction& into) {
  const int width = width_of(statement.opcode.back());
  const auto& arguments = statement.arguments;
  if (width < 0 || arguments.size() != 2) statement.refuse("no such move");
  const bool packs = arguments[0].kind == Argument::vector || arguments[1].kind == Argument::vector;
  const auto results = elements(arguments[0]), operands = elements(arguments[1]);
  for (std::size_t part = 0; part < results.size(); ++part) {
    if (results[part].kind == Argument::sink) {
      into.options[0] = static_cast<u8>(into.options[0] | 1u << part);
    } else {
      result(statement, into, results[part]);
    }
  }
  into.options[1] = static_cast<u8>(static_cast<std::size_t>(width) / results.size());
  for (const Argument& element : operands) {
    operand(statement, into, element, width / static_cast<int>(operands.size()));
  }
  into.settles = !packs;
  into.execute = packs        ? repack
                 : width == 0 ? copy_predicate
                 : width == 2 ? copy<u16>
                 : width == 4 ? copy<u32>
                              : copy<u64>;
}

// cvta: adds or (.to) removes the tag bit by which generic addresses of shared and local memory are recognised.
void read_convert_address(Statement& statement, Instruction& into) {
  const Space space = space_of(statement);
  const uint64_t window = space == Space::shared ? kSharedWindow : space == Space::local ? kLocalWindow : 0;
  result(statement, into, statement.arguments.at(0));
  operand(statement, into, statement.arguments.at(1), 8);
  into.offset = static_cast<int64_t>(window);
  into.options[0] = statement.has("to");
  into.execute = [](Warp& warp, const Instruction& in, u32 active) {
    const auto window = static_cast<u64>(in.offset);
    each_lane(active, [&](int lane) {
      const u64 from = warp.slot<u64>(in.slots[1])[lane];
      warp.slot<u64>(in.slots[0])[lane] = in.options[0] ? from & ~window : from | window;
    });
  };
}

void read_convert(Statement& statement, Instruction& into) {
  const std::string from = statement.opcode.back(), to = statement.opcode.at(statement.opcode.size() - 2);
  result(statement, into, statement.arguments.at(0));
  if (to == "f16x2" || to == "bf16x2") {
    if (from != "f32") statement.refuse("unknown conversion");
    for (std::size_t i : {1, 2}) operand(statement, into, statement.arguments.at(i), 4);
    into.execute = to == "f16x2" ? convert_pair<f16> : convert_pair<bf16>;
    return;
  }
  operand(statement, into, statement.arguments.at(1), width_of(from));
  const bool integer_rounding =
      statement.has("rni") || statement.has("rzi") || statement.has("rmi") || statement.has("rpi");
  into.options[0] = static_cast<u8>((statement.has("sat") ? kSaturate : 0) | (integer_rounding ? kToInteger : 0) |
                                    (statement.has("ftz") ? kFlush : 0));
  into.rounding = rounding_of(statement);
  into.execute = converter(to, from);
  if (into.execute == nullptr) statement.refuse("unknown conversion");
}

}  // namespace ptx

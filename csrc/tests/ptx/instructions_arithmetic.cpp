// Instructions whose result in each lane is a pure function of that lane's operands, listed in the table
// `arithmetic()`; and additions with carry.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <unordered_map>
#include <utility>

#include "instructions.h"
#include "operands.h"
#include "values.h"

namespace ptx {
namespace {

// -- integers ---------------------------------------------------------------------------------------------------------

template <class T>
T add(T a, T b) {
  return static_cast<T>(a + b);
}
template <class T>
T sub(T a, T b) {
  return static_cast<T>(a - b);
}
template <class T>
T mul(T a, T b) {
  return static_cast<T>(a * b);
}
template <class T>
T mul_low(T a, T b) {
  return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b));
}
template <class T>
T mad_low(T a, T b, T c) {
  return static_cast<T>(static_cast<u64>(a) * static_cast<u64>(b) + static_cast<u64>(c));
}
template <class T>
T mul_high(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> (8 * sizeof(T)));
}
template <class T>
T mad_high(T a, T b, T c) {
  return static_cast<T>(static_cast<u64>(mul_high(a, b)) + static_cast<u64>(c));
}
template <class D, class S>
D mul_wide(S a, S b) {
  return static_cast<D>(a) * static_cast<D>(b);
}
template <class D, class S>
D mad_wide(S a, S b, D c) {
  return static_cast<D>(static_cast<u64>(mul_wide<D, S>(a, b)) + static_cast<u64>(c));
}
// PTX leaves division by zero undefined without a trap; as on the hardware, all bits of the result are set.
template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - static_cast<u64>(a));
  return static_cast<T>(a / b);
}
template <class T>
T remainder(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  return std::is_signed_v<T> && b == static_cast<T>(-1) ? T{0} : static_cast<T>(a % b);
}
template <class T>
T smaller(T a, T b) {
  return std::min(a, b);
}
template <class T>
T larger(T a, T b) {
  return std::max(a, b);
}
template <class T>
T negate(T a) {
  return static_cast<T>(0 - static_cast<u64>(a));
}
template <class T>
T absolute(T a) {
  return a < 0 ? negate(a) : a;
}
template <class T>
T bit_and(T a, T b) {
  return a & b;
}
template <class T>
T bit_or(T a, T b) {
  return a | b;
}
template <class T>
T bit_xor(T a, T b) {
  return a ^ b;
}
template <class T>
T bit_not(T a) {
  return static_cast<T>(~a);
}
template <class T>
T left(T a, u32 by) {
  return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<u64>(a) << by);
}
template <class T>
T right(T a, u32 by) {
  if (by >= 8 * sizeof(T)) return a < T{0} ? static_cast<T>(-1) : T{0};
  return static_cast<T>(a >> by);
}
template <class T>
T reverse_bits(T a) {
  T out = 0;
  for (unsigned i = 0; i < 8 * sizeof(T); ++i) out = static_cast<T>(out << 1 | (a >> i & 1));
  return out;
}
u32 population(u32 a) { return static_cast<u32>(__builtin_popcount(a)); }
u32 population64(u64 a) { return static_cast<u32>(__builtin_popcountll(a)); }
u32 leading_zeros(u32 a) { return a ? static_cast<u32>(__builtin_clz(a)) : 32; }
u32 leading_zeros64(u64 a) { return a ? static_cast<u32>(__builtin_clzll(a)) : 64; }
// bfind: position of the highest bit that differs from the sign; all ones if there is none.
template <class T>
u32 find_bit(T a) {
  if (std::is_signed_v<T> && a < T{0}) a = static_cast<T>(~a);
  return a ? 63 - static_cast<u32>(__builtin_clzll(static_cast<u64>(a))) : ~0u;
}
// bfind.shiftamt: by how much to shift left to bring that bit to the top.
template <class T>
u32 find_shift(T a) {
  const u32 bit = find_bit(a);
  return bit == ~0u ? ~0u : static_cast<u32>(8 * sizeof(T)) - 1 - bit;
}
// bfe: the bits [position, position + length) of a, extended by zeros or, for signed types, by the highest of them.
template <class T>
T extract_bits(T a, u32 position, u32 length) {
  constexpr int most = 8 * sizeof(T) - 1;
  const int p = position & 255, n = length & 255;
  const bool sign = std::is_signed_v<T> && n > 0 && (static_cast<u64>(a) >> std::min(p + n - 1, most) & 1);
  u64 out = 0;
  for (int i = 0; i <= most; ++i) {
    out |= static_cast<u64>(i < n && p + i <= most ? static_cast<u64>(a) >> (p + i) & 1 : sign) << i;
  }
  return static_cast<T>(out);
}
// bfi: b with its bits [position, position + length) replaced by the lowest bits of a.
u32 insert_bits(u32 a, u32 b, u32 position, u32 length) {
  const u32 p = position & 255, n = length & 255;
  for (u32 i = 0; i < n && p + i < 32; ++i) b = (b & ~(1u << (p + i))) | (a >> i & 1) << (p + i);
  return b;
}
// prmt: four of the eight bytes of b:a, each chosen by a nibble of the selector; its bit 3 replicates the byte's sign.
u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 pick = selector >> (4 * i) & 15, byte = static_cast<u32>(bytes >> (8 * (pick & 7))) & 255;
    out |= (pick & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
  }
  return out;
}
// shf: one half of the 64-bit value high:low shifted; .wrap takes the amount modulo 32, .clamp limits it to 32.
u32 funnel_left(u32 low, u32 high, u32 by) {
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) << by >> 32);
}
u32 funnel_left_wrap(u32 low, u32 high, u32 by) { return funnel_left(low, high, by & 31); }
u32 funnel_left_clamp(u32 low, u32 high, u32 by) { return by >= 32 ? low : funnel_left(low, high, by); }
u32 funnel_right_wrap(u32 low, u32 high, u32 by) {
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> (by & 31));
}
u32 funnel_right_clamp(u32 low, u32 high, u32 by) { return by >= 32 ? high : funnel_right_wrap(low, high, by); }
// lop3: bit by bit, the entry of the 8-bit truth table at index a * 4 + b * 2 + c.
u32 logic(u32 a, u32 b, u32 c, u32 table) {
  u32 out = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return out;
}

// -- float32 and float64 ----------------------------------------------------------------------------------------------

template <class T>
T fused(T a, T b, T c) {
  return std::fma(a, b, c);
}
template <class T>
T quotient(T a, T b) {
  return a / b;
}
template <class T>
T reciprocal(T a) {
  return T{1} / a;
}
template <class T>
T root(T a) {
  return std::sqrt(a);
}
template <class T>
T float_negate(T a) {
  return -a;
}
template <class T>
T float_absolute(T a) {
  return std::abs(a);
}
template <class T>
T sign_of(T a, T b) {
  return std::copysign(b, a);
}
// min and max: if one operand is NaN, the other one; -0 is smaller than +0.
template <class T>
T float_min(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  return a < b || (a == b && std::signbit(a)) ? a : b;
}
template <class T>
T float_max(T a, T b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
  return a > b || (a == b && !std::signbit(a)) ? a : b;
}
// min.NaN and max.NaN: NaN if an operand is.
template <class T>
T float_min_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : float_min(a, b);
}
template <class T>
T float_max_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : float_max(a, b);
}
// .ftz: subnormal operands and results become zero.
f32 add_ftz(f32 a, f32 b) { return flush(flush(a) + flush(b)); }
f32 sub_ftz(f32 a, f32 b) { return flush(flush(a) - flush(b)); }
f32 mul_ftz(f32 a, f32 b) { return flush(flush(a) * flush(b)); }
f32 fma_ftz(f32 a, f32 b, f32 c) { return flush(std::fma(flush(a), flush(b), flush(c))); }
f32 min_ftz(f32 a, f32 b) { return flush(float_min(flush(a), flush(b))); }
f32 max_ftz(f32 a, f32 b) { return flush(float_max(flush(a), flush(b))); }
f32 abs_ftz(f32 a) { return flush(std::abs(a)); }
f32 neg_ftz(f32 a) { return flush(-a); }
// .sat: clamped to [0, 1]; NaN becomes 0.
f32 saturate(f32 x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }
f32 add_sat(f32 a, f32 b) { return saturate(a + b); }
f32 fma_sat(f32 a, f32 b, f32 c) { return saturate(std::fma(a, b, c)); }

// -- 16-bit floats, alone or two in a register: float64 holds their sums and products exactly, so they are rounded once

struct pair16 {
  u16 low, high;
};
template <class T>
T short_add(T a, T b) {
  return from_double<T>(to_double(a) + to_double(b));
}
template <class T>
T short_sub(T a, T b) {
  return from_double<T>(to_double(a) - to_double(b));
}
template <class T>
T short_mul(T a, T b) {
  return from_double<T>(to_double(a) * to_double(b));
}
template <class T>
T short_fma(T a, T b, T c) {
  return from_double<T>(std::fma(to_double(a), to_double(b), to_double(c)));
}
// The function applied to both halves.
template <class T, T (*function)(T, T)>
pair16 both(pair16 a, pair16 b) {
  return {function(T{a.low}, T{b.low}).bits, function(T{a.high}, T{b.high}).bits};
}
template <class T>
pair16 both_fma(pair16 a, pair16 b, pair16 c) {
  return {short_fma(T{a.low}, T{b.low}, T{c.low}).bits, short_fma(T{a.high}, T{b.high}, T{c.high}).bits};
}

// -- the table --------------------------------------------------------------------------------------------------------

// Lanes<function>::execute applies a function of scalars to the active lanes: result in slots[0], operands after it.
template <auto function>
struct Lanes;
template <class D, class... S, D (*function)(S...)>
struct Lanes<function> {
  template <std::size_t... I>
  static void go(Warp& warp, const Instruction& in, u32 active, std::index_sequence<I...>) {
    D* const to = warp.slot<D>(in.slots[0]);
    const auto run = [to, active](const S*... from) {
      each_lane(active, [&](int lane) { to[lane] = function(from[lane]...); });
    };
    run(warp.slot<S>(in.slots[I + 1])...);
  }
  static void execute(Warp& warp, const Instruction& in, u32 active) {
    go(warp, in, active, std::index_sequence_for<S...>());
  }
};

// What executes an instruction, and the widths in bytes of its result and operands.
struct Entry {
  Execute execute;
  std::vector<u8> widths;
};
template <auto function, class D, class... S>
Entry entry_of(D (*)(S...)) {
  return {&Lanes<function>::execute, {sizeof(D), sizeof(S)...}};
}
template <auto function>
Entry lanes() {
  return entry_of<function>(function);
}

// The functions that the .approx instructions approximate.
double power_of_two(double x) { return std::exp2(x); }
double logarithm(double x) { return std::log2(x); }
double inverse(double x) { return 1 / x; }
double inverse_root(double x) { return 1 / std::sqrt(x); }
double square_root(double x) { return std::sqrt(x); }
double hyperbolic_tangent(double x) { return std::tanh(x); }
double sine(double x) { return std::sin(x); }
double cosine(double x) { return std::cos(x); }

// An .approx instruction whose relative error is at most 2^-bits. `flushes`: .ftz.
template <double (*function)(double), bool flushes, int bits>
Entry approximation() {
  const Execute execute = [](Warp& warp, const Instruction& in, u32 active) {
    f32* const to = warp.slot<f32>(in.slots[0]);
    const f32* const from = warp.slot<f32>(in.slots[1]);
    each_lane(active, [&](int lane) {
      const f32 x = flushes ? flush(from[lane]) : from[lane];
      const f32 result = approximate(function(x), std::ldexp(1.0, -bits), warp);
      to[lane] = flushes ? flush(result) : result;
    });
  };
  return {execute, {4, 4}};
}

Entry approximate_quotient() {
  const Execute execute = [](Warp& warp, const Instruction& in, u32 active) {
    each_lane(active, [&](int lane) {
      const double exact = static_cast<double>(warp.slot<f32>(in.slots[1])[lane]) / warp.slot<f32>(in.slots[2])[lane];
      warp.slot<f32>(in.slots[0])[lane] = approximate(exact, 0x1p-22, warp);  // two units in the last place
    });
  };
  return {execute, {4, 4, 4}};
}

// All instructions of this file by opcode without the rounding modifier. The macros enter one function for several
// types: WORDS for all integers, BITS for untyped bits, SHORTS for 16-bit floats and pairs of them, FLOATS for float32
// and float64.
const std::unordered_map<std::string, Entry>& arithmetic() {
#define ONE(name, function, type) {name "." #type, lanes<&function<type>>()}
#define WORDS(name, function)                                                                             \
  ONE(name, function, u16), ONE(name, function, u32), ONE(name, function, u64), ONE(name, function, s16), \
      ONE(name, function, s32), ONE(name, function, s64)
#define BITS(name, function) \
  {name ".b16", lanes<&function<u16>>()}, {name ".b32", lanes<&function<u32>>()}, {name ".b64", lanes<&function<u64>>()}
#define SHORTS(name, function)                                                      \
  {name ".f16", lanes<&function<f16>>()}, {name ".bf16", lanes<&function<bf16>>()}, \
      {name ".f16x2", lanes<&both<f16, function<f16>>>()}, {name ".bf16x2", lanes<&both<bf16, function<bf16>>>()}
#define FLOATS(name, function) ONE(name, function, f32), ONE(name, function, f64)
  static const std::unordered_map<std::string, Entry> table = {
      WORDS("add", add),
      WORDS("sub", sub),
      WORDS("mul.lo", mul_low),
      WORDS("mul.hi", mul_high),
      WORDS("mad.lo", mad_low),
      WORDS("mad.hi", mad_high),
      WORDS("div", divide),
      WORDS("rem", remainder),
      WORDS("min", smaller),
      WORDS("max", larger),
      WORDS("neg", negate),
      WORDS("abs", absolute),
      WORDS("shr", right),
      WORDS("bfind", find_bit),
      WORDS("bfind.shiftamt", find_shift),
      WORDS("bfe", extract_bits),
      BITS("shr", right),
      BITS("shl", left),
      BITS("and", bit_and),
      BITS("or", bit_or),
      BITS("xor", bit_xor),
      BITS("not", bit_not),
      BITS("brev", reverse_bits),
      {"mul.wide.u16", lanes<&mul_wide<u32, u16>>()},
      {"mul.wide.s16", lanes<&mul_wide<s32, s16>>()},
      {"mul.wide.u32", lanes<&mul_wide<u64, u32>>()},
      {"mul.wide.s32", lanes<&mul_wide<s64, s32>>()},
      {"mad.wide.u16", lanes<&mad_wide<u32, u16>>()},
      {"mad.wide.s16", lanes<&mad_wide<s32, s16>>()},
      {"mad.wide.u32", lanes<&mad_wide<u64, u32>>()},
      {"mad.wide.s32", lanes<&mad_wide<s64, s32>>()},
      {"popc.b32", lanes<&population>()},
      {"popc.b64", lanes<&population64>()},
      {"clz.b32", lanes<&leading_zeros>()},
      {"clz.b64", lanes<&leading_zeros64>()},
      {"bfi.b32", lanes<&insert_bits>()},
      {"prmt.b32", lanes<&permute>()},
      {"shf.l.wrap.b32", lanes<&funnel_left_wrap>()},
      {"shf.l.clamp.b32", lanes<&funnel_left_clamp>()},
      {"shf.r.wrap.b32", lanes<&funnel_right_wrap>()},
      {"shf.r.clamp.b32", lanes<&funnel_right_clamp>()},
      {"lop3.b32", lanes<&logic>()},
      FLOATS("add", add),
      FLOATS("sub", sub),
      FLOATS("mul", mul),
      FLOATS("fma", fused),
      FLOATS("mad", fused),
      FLOATS("div", quotient),
      FLOATS("rcp", reciprocal),
      FLOATS("sqrt", root),
      FLOATS("neg", float_negate),
      FLOATS("abs", float_absolute),
      FLOATS("copysign", sign_of),
      FLOATS("min", float_min),
      FLOATS("max", float_max),
      FLOATS("min.NaN", float_min_nan),
      FLOATS("max.NaN", float_max_nan),
      {"add.ftz.f32", lanes<&add_ftz>()},
      {"sub.ftz.f32", lanes<&sub_ftz>()},
      {"mul.ftz.f32", lanes<&mul_ftz>()},
      {"fma.ftz.f32", lanes<&fma_ftz>()},
      SHORTS("add", short_add),
      SHORTS("sub", short_sub),
      SHORTS("mul", short_mul),
      {"fma.f16", lanes<&short_fma<f16>>()},
      {"fma.bf16", lanes<&short_fma<bf16>>()},
      {"fma.f16x2", lanes<&both_fma<f16>>()},
      {"fma.bf16x2", lanes<&both_fma<bf16>>()},
      {"add.sat.f32", lanes<&add_sat>()},
      {"min.ftz.f32", lanes<&min_ftz>()},
      {"max.ftz.f32", lanes<&max_ftz>()},
      {"abs.ftz.f32", lanes<&abs_ftz>()},
      {"neg.ftz.f32", lanes<&neg_ftz>()},
      {"fma.sat.f32", lanes<&fma_sat>()},
      {"ex2.approx.ftz.f32", approximation<power_of_two, true, 22>()},
      {"ex2.approx.f32", approximation<power_of_two, false, 22>()},
      {"lg2.approx.ftz.f32", approximation<logarithm, true, 22>()},
      {"lg2.approx.f32", approximation<logarithm, false, 22>()},
      {"rcp.approx.ftz.f32", approximation<inverse, true, 23>()},
      {"rcp.approx.f32", approximation<inverse, false, 23>()},
      {"sqrt.approx.ftz.f32", approximation<square_root, true, 22>()},
      {"sqrt.approx.f32", approximation<square_root, false, 22>()},
      {"rsqrt.approx.ftz.f32", approximation<inverse_root, true, 22>()},
      {"rsqrt.approx.f32", approximation<inverse_root, false, 22>()},
      {"tanh.approx.f32", approximation<hyperbolic_tangent, false, 11>()},
      {"sin.approx.f32", approximation<sine, false, 20>()},
      {"cos.approx.f32", approximation<cosine, false, 20>()},
      {"div.full.f32", approximate_quotient()},
      {"div.approx.f32", approximate_quotient()},
      {"div.full.ftz.f32", approximate_quotient()},
      {"div.approx.ftz.f32", approximate_quotient()},
  };
#undef ONE
#undef WORDS
#undef BITS
#undef FLOATS
#undef SHORTS
  return table;
}

// add.cc, addc, sub.cc and subc. takes: adds or subtracts the carry flag; leaves: sets it.
template <class T, bool subtracts, bool takes, bool leaves>
void carry(Warp& warp, const Instruction& in, u32 active) {
  each_lane(active, [&](int lane) {
    const T a = warp.slot<T>(in.slots[1])[lane], b = warp.slot<T>(in.slots[2])[lane];
    const T before = takes ? warp.carry >> lane & 1 : 0;
    T computed;
    bool out;
    if constexpr (subtracts) {
      computed = static_cast<T>(a - b - before);
      out = a < b || (a == b && before);
    } else {
      computed = static_cast<T>(a + b + before);
      out = computed < a || (before && computed == a);
    }
    warp.slot<T>(in.slots[0])[lane] = computed;
    if (leaves) warp.carry = (warp.carry & ~(1u << lane)) | u32(out) << lane;
  });
}

template <class T>
Execute carry_of(bool subtracts, bool takes, bool leaves) {
  if (subtracts)
    return takes ? (leaves ? carry<T, true, true, true> : carry<T, true, true, false>) : carry<T, true, false, true>;
  return takes ? (leaves ? carry<T, false, true, true> : carry<T, false, true, false>) : carry<T, false, false, true>;
}

}  // namespace

void read_carry(Statement& statement, Instruction& into) {
  const std::string& name = statement.opcode[0];
  const int width = width_of(statement.opcode.back());
  result(statement, into, statement.arguments.at(0));
  for (std::size_t i : {1, 2}) operand(statement, into, statement.arguments.at(i), width);
  const bool subtracts = name == "sub" || name == "subc", takes = name == "addc" || name == "subc",
             leaves = statement.has("cc");
  into.execute = width == 4 ? carry_of<u32>(subtracts, takes, leaves) : carry_of<u64>(subtracts, takes, leaves);
}

void read_arithmetic(Statement& statement, Instruction& into) {
  // Look the opcode up, without its rounding modifier.
  std::string key = statement.opcode[0];
  for (std::size_t i = 1; i < statement.opcode.size(); ++i) {
    const std::string& part = statement.opcode[i];
    if (part != "rn" && part != "rz" && part != "rm" && part != "rp") key += "." + part;
  }
  const auto found = arithmetic().find(key);
  if (found == arithmetic().end()) statement.refuse("unknown instruction");
  // Check the operands against the entry, and take over their slots.
  const Entry& entry = found->second;
  if (statement.arguments.size() != entry.widths.size()) statement.refuse("wrong number of operands");
  for (std::size_t i = 0; i < entry.widths.size(); ++i) {
    const Argument& argument = statement.arguments[i];
    if (argument.kind == Argument::slot && argument.width != entry.widths[i])
      statement.refuse("a register of the wrong width");
    if (i == 0) {
      result(statement, into, argument);
    } else {
      operand(statement, into, argument, entry.widths[i]);
    }
  }
  into.execute = entry.execute;
  into.rounding = rounding_of(statement);
}

}  // namespace ptx

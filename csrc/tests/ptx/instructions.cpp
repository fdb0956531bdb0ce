// What each instruction computes: PTX ISA 8.8, "Instruction Set". The table of `arithmetic()` has those that are a
// function of their operands, lane by lane; below it are the others, each with its own reader.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_map>

#include "machine.h"
#include "tensor_core.h"

namespace ptx {
namespace {

using u8 = uint8_t;
using s8 = int8_t;
using u16 = uint16_t;
using s16 = int16_t;
using u32 = uint32_t;
using s32 = int32_t;
using u64 = uint64_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;
struct f16 {
  u16 bits;
};
struct bf16 {
  u16 bits;
};

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// -- numbers ----------------------------------------------------------------------------------------------------------

// To `bits` significant bits, in the processor's rounding mode, with the smallest normal exponent `least`.
double round_significand(double x, int bits, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int unit = std::max(std::ilogb(x), least) - (bits - 1);
  return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

double to_double(f32 x) { return x; }
double to_double(f64 x) { return x; }
double to_double(bf16 x) { return bit_cast<f32>(static_cast<u32>(x.bits) << 16); }
double to_double(f16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double magnitude = exponent == 31  ? (fraction ? std::nan("") : std::numeric_limits<double>::infinity())
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

template <class T>
T from_double(double x) {
  if constexpr (std::is_same_v<T, f16>) {
    if (std::isnan(x)) return {0x7fff};
    const u16 sign = std::signbit(x) ? 0x8000 : 0;
    const double magnitude = std::abs(round_significand(x, 11, -14));
    if (magnitude > 65504) return {static_cast<u16>(sign | 0x7c00)};
    if (magnitude < 0x1p-14) return {static_cast<u16>(sign | static_cast<u16>(std::ldexp(magnitude, 24)))};
    const int exponent = std::ilogb(magnitude);
    const int fraction = static_cast<int>(std::ldexp(magnitude, 10 - exponent)) - 1024;
    return {static_cast<u16>(sign | (exponent + 15) << 10 | fraction)};
  } else if constexpr (std::is_same_v<T, bf16>) {
    if (std::isnan(x)) return {0x7fff};
    return {static_cast<u16>(bit_cast<u32>(static_cast<float>(round_significand(x, 8, -126))) >> 16)};
  } else {
    return static_cast<T>(x);
  }
}

f32 flush(f32 x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// The result of an instruction that may err by `relative`; a function of its operands, as it is on a GPU.
f32 approximate(double exact, double relative, const Warp& warp) {
  if (warp.block->settings.arithmetic != Arithmetic::worst || !std::isfinite(exact)) return static_cast<f32>(exact);
  const bool up = scramble(warp.block->settings.seed, bit_cast<u32>(static_cast<f32>(exact))) & 1;
  return static_cast<f32>(exact * (1 + (up ? relative : -relative)));
}

// -- functions of a lane's operands -----------------------------------------------------------------------------------

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
// Division by zero is undefined but no fault; the hardware gives ones.
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
template <class T>
u32 find_bit(T a) {
  if (std::is_signed_v<T> && a < T{0}) a = static_cast<T>(~a);
  return a ? 63 - static_cast<u32>(__builtin_clzll(static_cast<u64>(a))) : ~0u;
}
template <class T>
u32 find_shift(T a) {
  const u32 bit = find_bit(a);
  return bit == ~0u ? ~0u : static_cast<u32>(8 * sizeof(T)) - 1 - bit;
}
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
u32 insert_bits(u32 a, u32 b, u32 position, u32 length) {
  const u32 p = position & 255, n = length & 255;
  for (u32 i = 0; i < n && p + i < 32; ++i) b = (b & ~(1u << (p + i))) | (a >> i & 1) << (p + i);
  return b;
}
u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 out = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 pick = selector >> (4 * i) & 15, byte = static_cast<u32>(bytes >> (8 * (pick & 7))) & 255;
    out |= (pick & 8 ? (byte & 128 ? 255 : 0) : byte) << (8 * i);
  }
  return out;
}
u32 funnel_left(u32 low, u32 high, u32 by) {
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) << by >> 32);
}
u32 funnel_left_wrap(u32 low, u32 high, u32 by) { return funnel_left(low, high, by & 31); }
u32 funnel_left_clamp(u32 low, u32 high, u32 by) { return by >= 32 ? low : funnel_left(low, high, by); }
u32 funnel_right_wrap(u32 low, u32 high, u32 by) {
  return static_cast<u32>((static_cast<u64>(high) << 32 | low) >> (by & 31));
}
u32 funnel_right_clamp(u32 low, u32 high, u32 by) { return by >= 32 ? high : funnel_right_wrap(low, high, by); }
u32 logic(u32 a, u32 b, u32 c, u32 table) {
  u32 out = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return out;
}

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
// The operand that is a number; of two zeros, -0 is the smaller.
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
template <class T>
T float_min_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : float_min(a, b);
}
template <class T>
T float_max_nan(T a, T b) {
  return std::isnan(a) || std::isnan(b) ? std::numeric_limits<T>::quiet_NaN() : float_max(a, b);
}
f32 add_ftz(f32 a, f32 b) { return flush(flush(a) + flush(b)); }
f32 sub_ftz(f32 a, f32 b) { return flush(flush(a) - flush(b)); }
f32 mul_ftz(f32 a, f32 b) { return flush(flush(a) * flush(b)); }
f32 fma_ftz(f32 a, f32 b, f32 c) { return flush(std::fma(flush(a), flush(b), flush(c))); }
f32 min_ftz(f32 a, f32 b) { return flush(float_min(flush(a), flush(b))); }
f32 max_ftz(f32 a, f32 b) { return flush(float_max(flush(a), flush(b))); }
f32 abs_ftz(f32 a) { return flush(std::abs(a)); }
f32 neg_ftz(f32 a) { return flush(-a); }
f32 saturate(f32 x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }
f32 add_sat(f32 a, f32 b) { return saturate(a + b); }
f32 fma_sat(f32 a, f32 b, f32 c) { return saturate(std::fma(a, b, c)); }

// 16-bit numbers, alone or as the two halves of a register; double holds sums and products of them exactly.
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
template <class T, T (*function)(T, T)>
pair16 both(pair16 a, pair16 b) {
  return {function(T{a.low}, T{b.low}).bits, function(T{a.high}, T{b.high}).bits};
}
template <class T>
pair16 both_fma(pair16 a, pair16 b, pair16 c) {
  return {short_fma(T{a.low}, T{b.low}, T{c.low}).bits, short_fma(T{a.high}, T{b.high}, T{c.high}).bits};
}

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

// How an instruction is run, and the widths of its result and operands.
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

// Approximate functions of one number, by what they are and how far they may be off.
double power_of_two(double x) { return std::exp2(x); }
double logarithm(double x) { return std::log2(x); }
double inverse(double x) { return 1 / x; }
double inverse_root(double x) { return 1 / std::sqrt(x); }
double square_root(double x) { return std::sqrt(x); }
double hyperbolic_tangent(double x) { return std::tanh(x); }
double sine(double x) { return std::sin(x); }
double cosine(double x) { return std::cos(x); }

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

// -- reading operands -------------------------------------------------------------------------------------------------

int width_of(const std::string& type) {
  static const std::unordered_map<std::string, int> widths = {
      {"pred", 0},   {"b8", 1},   {"u8", 1},  {"s8", 1},  {"b16", 2}, {"u16", 2}, {"s16", 2},
      {"f16", 2},    {"bf16", 2}, {"b32", 4}, {"u32", 4}, {"s32", 4}, {"f32", 4}, {"f16x2", 4},
      {"bf16x2", 4}, {"b64", 8},  {"u64", 8}, {"s64", 8}, {"f64", 8}};
  const auto found = widths.find(type);
  return found == widths.end() ? -1 : found->second;
}

// Adds an operand; a constant becomes a slot of `width` bytes. All results come before all operands.
void add_operand(Statement& statement, Instruction& into, const Argument& argument, int width) {
  uint32_t slot = argument.at;
  int actual = argument.width;
  if (argument.kind == Argument::number) {
    uint64_t bits = argument.bits;
    if (argument.float_width == 8 && width == 4) bits = bit_cast<u32>(static_cast<f32>(bit_cast<f64>(bits)));
    if (width < 8) bits &= (uint64_t{1} << (8 * std::max(width, 1))) - 1;
    slot = statement.constant(bits, actual = width);
  } else if (argument.kind != Argument::slot || argument.negated) {
    statement.refuse("unexpected operand");
  }
  into.slots.push_back(slot);
  into.widths.push_back(static_cast<u8>(actual));
}
void result(Statement& statement, Instruction& into, const Argument& argument) {
  if (argument.kind != Argument::slot) statement.refuse("the result is no register");
  add_operand(statement, into, argument, argument.width);
  ++into.written;
}
void operand(Statement& statement, Instruction& into, const Argument& argument, int width) {
  add_operand(statement, into, argument, width);
  ++into.read;
}
// An address comes as the last operand.
void address(Statement& statement, Instruction& into, const Argument& argument) {
  if (argument.kind != Argument::address) statement.refuse("expected an address");
  operand(statement, into, argument.parts[0], 8);
  into.offset = argument.offset;
  into.needed = 1;
}
std::vector<Argument> elements(const Argument& argument) {
  return argument.kind == Argument::vector ? argument.parts : std::vector<Argument>{argument};
}

uint64_t address_at(Warp& warp, const Instruction& in, std::size_t operand, int lane) {
  const uint32_t slot = in.slots[operand];
  const uint64_t base = in.widths[operand] == 8 ? warp.slot<u64>(slot)[lane] : warp.slot<u32>(slot)[lane];
  const uint64_t sum = base + static_cast<uint64_t>(in.offset);
  return in.widths[operand] == 8 ? sum : static_cast<u32>(sum);
}

Space space_of(const Statement& statement) {
  if (statement.has("global") || statement.has("const")) return Space::global;
  if (statement.has("shared") || statement.has("shared::cta")) return Space::shared;
  if (statement.has("local")) return Space::local;
  if (statement.has("param")) return Space::param;
  return Space::generic;
}

// -- memory -----------------------------------------------------------------------------------------------------------

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
    const T made =
        updated<T>(kUpdates[in.options[0]], old, b, warp.slot<T>(in.slots[std::min(values + 1, place)])[lane]);
    std::memcpy(at, &made, sizeof made);
    if (in.written) warp.slot<T>(in.slots[0])[lane] = old;
  });
}

void read_update(Statement& statement, Instruction& into) {
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

// cp.async: the bytes are read at once, but written when they are waited for.
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
  const auto& arguments = statement.arguments;
  into.width = static_cast<u8>(arguments.at(2).bits);
  address(statement, into, arguments.at(1));
  const int64_t from_offset = into.offset;
  address(statement, into, arguments.at(0));
  operand(statement, into, arguments.size() > 3 ? arguments[3] : arguments[2], 4);
  into.target = static_cast<u32>(from_offset);
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

// Arguments of a call, with what is undefined in them.
void hand_over(Warp& warp, const Instruction& in, u32 active) {
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

// -- copies and conversions -------------------------------------------------------------------------------------------

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

// Bytes of all parts one after another, from operands to results. options[0]: parts of the results that are left out,
// options[1]: bytes of a part.
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

// Windows of shared and local memory in generic space.
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

template <class T>
constexpr bool is_real = std::is_floating_point_v<T> || std::is_same_v<T, f16> || std::is_same_v<T, bf16>;

enum ConversionOptions : u8 { kSaturate = 1, kToInteger = 2, kFlush = 4 };

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

// A register may be wider than the type: what is read are its low bytes, what is written is extended.
template <class D, class S>
void convert_lanes(Warp& warp, const Instruction& in, u32 active) {
  const u8* const from = warp.slot<u8>(in.slots[1]);
  u8* const to = warp.slot<u8>(in.slots[0]);
  each_lane(active, [&](int lane) {
    S value;
    std::memcpy(&value, from + std::size_t(lane) * in.widths[1], sizeof value);
    const D made = convert<D, S>(value, in.options[0]);
    if constexpr (std::is_integral_v<D> && sizeof(D) < 8) {
      const s64 extended = static_cast<s64>(made);
      std::memcpy(to + std::size_t(lane) * in.widths[0], &extended, in.widths[0]);
    } else {
      std::memcpy(to + std::size_t(lane) * in.widths[0], &made, sizeof made);
    }
  });
}

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

// Two numbers of 16 bits in one register, the first operand in the upper half.
template <class D>
void convert_pair(Warp& warp, const Instruction& in, u32 active) {
  each_lane(active, [&](int lane) {
    const D high = from_double<D>(warp.slot<f32>(in.slots[1])[lane]),
            low = from_double<D>(warp.slot<f32>(in.slots[2])[lane]);
    warp.slot<u32>(in.slots[0])[lane] = static_cast<u32>(high.bits) << 16 | low.bits;
  });
}

int rounding_of(const Statement& statement) {
  if (statement.has("rz") || statement.has("rzi")) return FE_TOWARDZERO;
  if (statement.has("rm") || statement.has("rmi")) return FE_DOWNWARD;
  if (statement.has("rp") || statement.has("rpi")) return FE_UPWARD;
  return FE_TONEAREST;
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

// -- predicates -------------------------------------------------------------------------------------------------------

enum class Join : u8 { none, both, either, one };  // with a further predicate

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

template <class T>
void select(Warp& warp, const Instruction& in, u32 active) {
  T* const to = warp.slot<T>(in.slots[0]);
  const T *const a = warp.slot<T>(in.slots[1]), *const b = warp.slot<T>(in.slots[2]);
  const u32 p = warp.predicate(in.slots[3]);
  each_lane(active, [&](int lane) { to[lane] = p >> lane & 1 ? a[lane] : b[lane]; });
  const u32 defined = warp.defined[in.slots[3]] & ((p & warp.defined[in.slots[1]]) | (~p & warp.defined[in.slots[2]]));
  warp.defined[in.slots[0]] = (warp.defined[in.slots[0]] & ~active) | (defined & active);
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
    const u32 made = in.options[0] == 'a' ? a & b : in.options[0] == 'o' ? a | b : in.options[0] == 'x' ? a ^ b : ~a;
    u32& to = warp.predicate(in.slots[0]);
    to = (to & ~active) | (made & active);
  };
}

// -- carry chains -----------------------------------------------------------------------------------------------------

template <class T, bool subtracts, bool takes, bool leaves>
void carry(Warp& warp, const Instruction& in, u32 active) {
  each_lane(active, [&](int lane) {
    const T a = warp.slot<T>(in.slots[1])[lane], b = warp.slot<T>(in.slots[2])[lane];
    const T before = takes ? warp.carry >> lane & 1 : 0;
    T made;
    bool out;
    if constexpr (subtracts) {
      made = static_cast<T>(a - b - before);
      out = a < b || (a == b && before);
    } else {
      made = static_cast<T>(a + b + before);
      out = made < a || (before && made == a);
    }
    warp.slot<T>(in.slots[0])[lane] = made;
    if (leaves) warp.carry = (warp.carry & ~(1u << lane)) | u32(out) << lane;
  });
}

template <class T>
Execute carry_of(bool subtracts, bool takes, bool leaves) {
  if (subtracts)
    return takes ? (leaves ? carry<T, true, true, true> : carry<T, true, true, false>) : carry<T, true, false, true>;
  return takes ? (leaves ? carry<T, false, true, true> : carry<T, false, true, false>) : carry<T, false, false, true>;
}

void read_carry(Statement& statement, Instruction& into) {
  const std::string& name = statement.opcode[0];
  const int width = width_of(statement.opcode.back());
  result(statement, into, statement.arguments.at(0));
  for (std::size_t i : {1, 2}) operand(statement, into, statement.arguments.at(i), width);
  const bool subtracts = name == "sub" || name == "subc", takes = name == "addc" || name == "subc",
             leaves = statement.has("cc");
  into.execute = width == 4 ? carry_of<u32>(subtracts, takes, leaves) : carry_of<u64>(subtracts, takes, leaves);
}

// -- for the lanes of a warp together ---------------------------------------------------------------------------------

// The lane that a lane reads from, or -1 where that is outside of its segment.
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

template <class T, T (*join)(T, T)>
void reduce(Warp& warp, const Instruction& in, u32 members) {
  const T* const from = warp.slot<T>(in.slots[1]);
  T made = from[__builtin_ctz(members)];
  each_lane(members & (members - 1), [&](int lane) { made = join(made, from[lane]); });
  each_lane(members, [&](int lane) { warp.slot<T>(in.slots[0])[lane] = made; });
}

void read_reduce(Statement& statement, Instruction& into) {
  const bool sign = statement.opcode.back() == "s32";
  result(statement, into, statement.arguments.at(0));
  for (std::size_t i : {1, 2}) operand(statement, into, statement.arguments.at(i), 4);
  into.flow = Flow::meet;
  into.members = 2;
  into.needed = 2;
  into.execute = statement.has("add")   ? reduce<u32, add<u32>>
                 : statement.has("and") ? reduce<u32, bit_and<u32>>
                 : statement.has("or")  ? reduce<u32, bit_or<u32>>
                 : statement.has("xor") ? reduce<u32, bit_xor<u32>>
                 : statement.has("min") ? (sign ? reduce<s32, smaller<s32>> : reduce<u32, smaller<u32>>)
                                        : (sign ? reduce<s32, larger<s32>> : reduce<u32, larger<u32>>);
}

void read_barrier(Statement& statement, Instruction& into) {
  if (statement.has("warp")) {
    operand(statement, into, statement.arguments.at(0), 4);
    into.flow = Flow::meet;
    into.members = 0;
    into.needed = 1;
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

// -- matrices ---------------------------------------------------------------------------------------------------------

// Row i of matrix m comes from the address of lane 8 m + i; lane l gets the elements 2 (l % 4) and the next of row l /
// 4, or, transposed, of column l / 4.
void load_matrices(Warp& warp, const Instruction& in, u32) {
  const int count = in.written;
  u16 rows[32][8];
  for (int row = 0; row < 8 * count; ++row) {
    warp.lane = row;
    const uint64_t from = address_at(warp, in, static_cast<std::size_t>(count), row);
    std::memcpy(rows[row], warp.block->access_defined(warp, Space::shared, from, 16, Use::read), 16);
  }
  for (int m = 0; m < count; ++m) {
    for (int lane = 0; lane < 32; ++lane) {
      const int major = lane / 4, minor = lane % 4 * 2;
      const u16 low = in.options[0] ? rows[8 * m + minor][major] : rows[8 * m + major][minor];
      const u16 high = in.options[0] ? rows[8 * m + minor + 1][major] : rows[8 * m + major][minor + 1];
      warp.slot<u32>(in.slots[static_cast<std::size_t>(m)])[lane] = low | static_cast<u32>(high) << 16;
    }
  }
}

void read_load_matrices(Statement& statement, Instruction& into) {
  if (!statement.has("m8n8") || !statement.has("b16")) statement.refuse("unknown shape");
  for (const Argument& element : elements(statement.arguments.at(0))) result(statement, into, element);
  address(statement, into, statement.arguments.at(1));
  into.flow = Flow::meet;
  into.options[0] = statement.has("trans");
  into.execute = load_matrices;
}

// Stands for an element of a register that was never set; makes the results that it goes into undefined, even times
// zero.
const double kUndefined = bit_cast<double>(u64{0x7ff8'dead'dead'dead});
bool is_undefined(double x) { return bit_cast<u64>(x) == bit_cast<u64>(kUndefined); }

template <class T>
struct Fragment {  // an operand of 16-bit numbers, two in a register
  Warp& warp;
  const Instruction& in;
  std::size_t first;
  double operator()(int lane, int element) const {
    const u32 slot = in.slots[first + static_cast<std::size_t>(element / 2)], pair = warp.slot<u32>(slot)[lane];
    if (!(warp.defined[slot] >> lane & 1)) return kUndefined;
    return to_double(T{static_cast<u16>(element % 2 ? pair >> 16 : pair)});
  }
};

// C + A B; `place` says which lane keeps an element of C and D, and in which of its registers.
template <int m, int n, int k, class Place>
void multiply(Warp& warp, const Instruction& in, const double (&a)[m][k], const double (&b)[k][n], u32 group,
              Place place) {
  const auto c = static_cast<std::size_t>(in.read);  // as many registers as D has, and the last operand
  f32 out[m][n];
  bool known[m][n];
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      double products[k];
      const auto [lane, element] = place(row, column);
      known[row][column] = warp.defined[in.slots[c + static_cast<std::size_t>(element)]] >> lane & 1;
      for (int i = 0; i < k; ++i) {
        products[i] = a[row][i] * b[i][column];
        known[row][column] &= !is_undefined(a[row][i]) && !is_undefined(b[i][column]);
      }
      const u32 noise =
          scramble(warp.at_pc * 1031 + group, static_cast<u32>(row * n + column) * 64 + warp.block->settings.seed);
      out[row][column] =
          sum_of_products(products, k, warp.slot<f32>(in.slots[c + static_cast<std::size_t>(element)])[lane],
                          warp.block->settings.arithmetic, noise);
    }
  }
  for (int row = 0; row < m; ++row) {
    for (int column = 0; column < n; ++column) {
      const auto [lane, element] = place(row, column);
      const u32 slot = in.slots[static_cast<std::size_t>(element)];
      warp.slot<f32>(slot)[lane] = out[row][column];
      warp.defined[slot] = (warp.defined[slot] & ~(1u << lane)) | u32(known[row][column]) << lane;
    }
  }
}

// "Matrix Fragments for mma.m8n8k4": four products, one for each group of 4 low and 4 high lanes.
template <bool a_rows, bool b_rows>
void multiply_m8n8k4(Warp& warp, const Instruction& in, u32) {
  const Fragment<f16> a_at{warp, in, 8}, b_at{warp, in, 10};
  for (int pair = 0; pair < 4; ++pair) {
    double a[8][4], b[4][8];
    const auto lane_of = [&](int i) { return pair * 4 + i % 4 + i / 4 * 16; };  // i: 0 .. 7
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 4; ++j) {
        if (a_rows) a[i][j] = a_at(lane_of(i), j);
        if (!a_rows) a[i][j] = a_at(lane_of(i / 4 * 4 + j), i % 4);
        if (b_rows) b[j][i] = b_at(lane_of(i / 4 * 4 + j), i % 4);
        if (!b_rows) b[j][i] = b_at(lane_of(i), j);
      }
    }
    multiply<8, 8, 4>(warp, in, a, b, static_cast<u32>(pair), [&](int row, int column) {
      // C[i][j]: lane's row is its bit 0, plus 2 for odd pairs of elements, plus 4 for high lanes
      const int lane = (row & 1) | (column >> 1 & 1) << 1;
      return std::pair(lane_of(lane + (row >> 2) * 4), (column & 1) | (row >> 1 & 1) << 1 | (column >> 2) << 2);
    });
  }
}

// "Matrix Fragments for mma.m16n8k8" and "... m16n8k16".
template <class T, int k>
void multiply_m16n8(Warp& warp, const Instruction& in, u32) {
  const Fragment<T> a_at{warp, in, 4}, b_at{warp, in, 4 + k / 4};
  double a[16][k], b[k][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, within = lane % 4 * 2;
    for (int i = 0; i < k / 2; ++i) a[group + i / 2 % 2 * 8][within + i % 2 + i / 4 * 8] = a_at(lane, i);
    for (int i = 0; i < k / 4; ++i) b[within + i % 2 + i / 2 * 8][group] = b_at(lane, i);
  }
  multiply<16, 8, k>(warp, in, a, b, 0,
                     [](int row, int column) { return std::pair(row % 8 * 4 + column / 2, column % 2 + row / 8 * 2); });
}

void read_multiply(Statement& statement, Instruction& into) {
  const auto& arguments = statement.arguments;
  if (arguments.size() != 4) statement.refuse("expected four operands");
  for (const Argument& element : elements(arguments[0])) result(statement, into, element);
  for (std::size_t i : {1, 2, 3}) {
    for (const Argument& element : elements(arguments[i])) operand(statement, into, element, 4);
  }
  std::string name;
  for (const std::string& part : statement.opcode) name += "." + part;
  const std::string f32_f16 = ".f32.f16.f16.f32", f32_bf16 = ".f32.bf16.bf16.f32", aligned = ".mma.sync.aligned.";
  const std::unordered_map<std::string, Execute> known = {
      {aligned + "m8n8k4.row.col" + f32_f16, multiply_m8n8k4<true, false>},
      {aligned + "m8n8k4.row.row" + f32_f16, multiply_m8n8k4<true, true>},
      {aligned + "m8n8k4.col.col" + f32_f16, multiply_m8n8k4<false, false>},
      {aligned + "m8n8k4.col.row" + f32_f16, multiply_m8n8k4<false, true>},
      {aligned + "m16n8k8.row.col" + f32_f16, multiply_m16n8<f16, 8>},
      {aligned + "m16n8k8.row.col" + f32_bf16, multiply_m16n8<bf16, 8>},
      {aligned + "m16n8k16.row.col" + f32_f16, multiply_m16n8<f16, 16>},
      {aligned + "m16n8k16.row.col" + f32_bf16, multiply_m16n8<bf16, 16>},
  };
  const auto found = known.find(name);
  if (found == known.end()) statement.refuse("unknown shape or type");
  into.execute = found->second;
  into.flow = Flow::meet;
  into.settles = true;
}

// -- the rest ---------------------------------------------------------------------------------------------------------

void nothing(Warp&, const Instruction&, u32) {}

void read_arithmetic(Statement& statement, Instruction& into) {
  std::string key = statement.opcode[0];
  for (std::size_t i = 1; i < statement.opcode.size(); ++i) {
    const std::string& part = statement.opcode[i];
    if (part != "rn" && part != "rz" && part != "rm" && part != "rp") key += "." + part;
  }
  const auto found = arithmetic().find(key);
  if (found == arithmetic().end()) statement.refuse("unknown instruction");
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

}  // namespace

void decode(Statement& statement, Instruction& into) {
  using Reader = void (*)(Statement&, Instruction&);
  static const std::unordered_map<std::string, Reader> readers = {
      {"ld", read_memory},
      {"ldu", read_memory},
      {"st", read_memory},
      {"atom", read_update},
      {"red", read_update},
      {"mov", read_move},
      {"cvta", read_convert_address},
      {"cvt", read_convert},
      {"setp", read_compare},
      {"selp", read_select},
      {"addc", read_carry},
      {"subc", read_carry},
      {"shfl", read_shuffle},
      {"vote", read_vote},
      {"activemask", read_vote},
      {"redux", read_reduce},
      {"bar", read_barrier},
      {"barrier", read_barrier},
      {"mma", read_multiply},
      {"ldmatrix", read_load_matrices},
  };
  const std::string& name = statement.opcode[0];
  into.execute = nothing;
  if (name == "hand_over") {
    into.execute = hand_over;
  } else if (name == "ret" || name == "exit") {
    into.flow = Flow::leave;
  } else if (name == "trap") {
    into.execute = [](Warp&, const Instruction&, u32) { throw Fault("the kernel traps"); };
  } else if (name == "membar" || name == "fence" || name == "prefetch" || name == "prefetchu") {
    // order, but don't synchronise; nothing here depends on it
  } else if (name == "cp" && statement.has("async")) {
    read_async_copy(statement, into);
  } else if (statement.has("cc")) {
    read_carry(statement, into);
  } else if (statement.opcode.back() == "pred" && name != "mov") {
    read_predicate_logic(statement, into);
  } else if (const auto reader = readers.find(name); reader != readers.end()) {
    reader->second(statement, into);
  } else {
    read_arithmetic(statement, into);
  }
}

}  // namespace ptx

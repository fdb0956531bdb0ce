// The types of PTX under their PTX names, and conversions to and from double, which represents all of them exactly
// except for 64-bit integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "machine.h"
#include "tensor_core.h"

namespace ptx {

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

// Rounds to `bits` significant bits, in the processor's rounding mode. Below 2^least, the smallest normal number, the
// spacing stays the same, as for subnormal numbers.
inline double round_significand(double x, int bits, int least) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int unit = std::max(std::ilogb(x), least) - (bits - 1);
  return std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
}

inline double to_double(f32 x) { return x; }
inline double to_double(f64 x) { return x; }
inline double to_double(bf16 x) { return bit_cast<f32>(static_cast<u32>(x.bits) << 16); }
inline double to_double(f16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double magnitude = exponent == 31  ? (fraction ? std::nan("") : std::numeric_limits<double>::infinity())
                           : exponent == 0 ? std::ldexp(fraction, -24)
                                           : std::ldexp(1024 + fraction, exponent - 25);
  return x.bits & 0x8000 ? -magnitude : magnitude;
}

// Rounds to type T in the processor's rounding mode.
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

// .ftz: a subnormal number becomes zero with its sign.
inline f32 flush(f32 x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

// The result of an approximate instruction with the relative error bound `relative`. With Arithmetic::worst it has that
// error, up or down depending on the exact result; so equal operands give equal results, as on a GPU.
inline f32 approximate(double exact, double relative, const Warp& warp) {
  if (warp.block->settings.arithmetic != Arithmetic::worst || !std::isfinite(exact)) return static_cast<f32>(exact);
  const bool up = scramble(warp.block->settings.seed, bit_cast<u32>(static_cast<f32>(exact))) & 1;
  return static_cast<f32>(exact * (1 + (up ? relative : -relative)));
}

}  // namespace ptx

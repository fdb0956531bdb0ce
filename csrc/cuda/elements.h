// Loads and stores of float32, float16 and bfloat16 elements as float: single elements whose dtype is known at run
// time, and vectors of 4 or 8 neighbours whose type is a template parameter.
#pragma once

#include "device.h"

namespace seed_fast::device {

constexpr int kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2;  // as csrc/include/dtype.h numbers them

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

SEED_FAST_DEVICE float to_float(float value) { return value; }
SEED_FAST_DEVICE float to_float(Half value) { return float_from_half(value.bits); }
SEED_FAST_DEVICE float to_float(BFloat16 value) { return float_from_bits(static_cast<unsigned>(value.bits) << 16); }

// Rounds to nearest, ties to even.
SEED_FAST_DEVICE void from_float(float value, Half& to) { to.bits = half_from_float(value); }
SEED_FAST_DEVICE void from_float(float value, BFloat16& to) {
  const unsigned bits = float_bits(value);
  to.bits = static_cast<unsigned short>(value != value ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Element i of an array of the dtype.
SEED_FAST_DEVICE float load(const void* values, int dtype, long long i) {
  if (dtype == kFloat32) return static_cast<const float*>(values)[i];
  if (dtype == kFloat16) return to_float(static_cast<const Half*>(values)[i]);
  return to_float(static_cast<const BFloat16*>(values)[i]);
}
SEED_FAST_DEVICE void store(void* values, int dtype, long long i, float value) {
  if (dtype == kFloat32) {
    static_cast<float*>(values)[i] = value;
  } else if (dtype == kFloat16) {
    from_float(value, static_cast<Half*>(values)[i]);
  } else {
    from_float(value, static_cast<BFloat16*>(values)[i]);
  }
}

// Convert a 32-bit word to and from two 16-bit neighbours, the first one in its low half.
template <class T>
SEED_FAST_DEVICE void unpack(unsigned word, float& first, float& second) {
  first = to_float(T{static_cast<unsigned short>(word & 0xffffu)});
  second = to_float(T{static_cast<unsigned short>(word >> 16)});
}
template <class T>
SEED_FAST_DEVICE unsigned pack(float first, float second) {
  T low, high;
  from_float(first, low);
  from_float(second, high);
  return low.bits | static_cast<unsigned>(high.bits) << 16;
}

// 4 or 8 neighbours in one instruction of 8 or 16 bytes, to which the address must be aligned.
SEED_FAST_DEVICE void load(const float* from, float (&to)[4]) {
  const float4 words = *reinterpret_cast<const float4*>(from);
  to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}
template <class T>
SEED_FAST_DEVICE void load(const T* from, float (&to)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  unpack<T>(words.x, to[0], to[1]);
  unpack<T>(words.y, to[2], to[3]);
}
template <class T>
SEED_FAST_DEVICE void load(const T* from, float (&to)[8]) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  unpack<T>(words.x, to[0], to[1]);
  unpack<T>(words.y, to[2], to[3]);
  unpack<T>(words.z, to[4], to[5]);
  unpack<T>(words.w, to[6], to[7]);
}
SEED_FAST_DEVICE void store(float* to, const float (&from)[4]) {
  *reinterpret_cast<float4*>(to) = float4{from[0], from[1], from[2], from[3]};
}
template <class T>
SEED_FAST_DEVICE void store(T* to, const float (&from)[4]) {
  *reinterpret_cast<uint2*>(to) = uint2{pack<T>(from[0], from[1]), pack<T>(from[2], from[3])};
}
template <class T>
SEED_FAST_DEVICE void store(T* to, const float (&from)[8]) {
  *reinterpret_cast<uint4*>(to) =
      uint4{pack<T>(from[0], from[1]), pack<T>(from[2], from[3]), pack<T>(from[4], from[5]), pack<T>(from[6], from[7])};
}

}  // namespace seed_fast::device

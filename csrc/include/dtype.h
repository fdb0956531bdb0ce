// Element types that launchers take as an integer, and their conversion to float32 (exact for all of them) and back
// (to nearest, ties to even). Internal linkage, as files of several instruction sets include this.
#pragma once

#include <cstdint>
#include <cstring>

namespace seed_fast {

enum class DType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

static inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

static inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_to_bits(value);
  return uint16_t(value != value ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static inline uint16_t float_to_half(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  // float16 below 2^-14 is subnormal, with a spacing of 2^-24. That is the spacing of float32 at 0.5, so adding 0.5
  // rounds to it.
  const uint32_t tiny = float_to_bits(bits_to_float(size) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  const uint32_t large = size > 0x7f800000u ? 0x7e00u : 0x7c00u;
  return uint16_t(sign | (size < 0x38800000u ? tiny : size < 0x477ff000u ? normal : large));
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) return bits_to_float(sign) + (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  return bits_to_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

static inline float load_as_float(const void* base, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::float16: return half_to_float(static_cast<const uint16_t*>(base)[index]);
    case DType::bfloat16: return bits_to_float(uint32_t(static_cast<const uint16_t*>(base)[index]) << 16);
    default: return static_cast<const float*>(base)[index];
  }
}

static inline void store_from_float(void* base, int64_t index, DType dtype, float value) {
  switch (dtype) {
    case DType::float16: static_cast<uint16_t*>(base)[index] = float_to_half(value); break;
    case DType::bfloat16: static_cast<uint16_t*>(base)[index] = float_to_bfloat16(value); break;
    default: static_cast<float*>(base)[index] = value;
  }
}

}  // namespace seed_fast

// Element types that launchers take as an integer, and their conversion to float32 (exact for all of them).
#pragma once

#include <cstdint>
#include <cstring>

namespace seed_fast {

enum class DType : int { float32 = 0, float16 = 1, bfloat16 = 2 };

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) return bits_to_float(sign) + (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | mantissa << 13);
  return bits_to_float(sign | (exponent + 112u) << 23 | mantissa << 13);
}

inline float load_as_float(const void* base, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::float16: return half_to_float(static_cast<const uint16_t*>(base)[index]);
    case DType::bfloat16: return bits_to_float(uint32_t(static_cast<const uint16_t*>(base)[index]) << 16);
    default: return static_cast<const float*>(base)[index];
  }
}

}  // namespace seed_fast

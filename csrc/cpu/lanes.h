// Registers of SEED_FAST_LANES floats, as the compiler's vector types, for the kernel headers. The file of each
// instruction set defines SEED_FAST_LANES and includes a kernel header. Everything here has internal linkage: otherwise
// the linker could keep one copy of a function for all files, and so bring AVX-512 code into the scalar path.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace seed_fast {
namespace {

constexpr int kWidth = SEED_FAST_LANES;

typedef float Floats __attribute__((vector_size(kWidth * sizeof(float)), aligned(2), may_alias));
typedef int32_t Ints __attribute__((vector_size(kWidth * sizeof(int32_t)), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kWidth * sizeof(uint32_t)), aligned(4), may_alias));

inline Floats load(const void* from) { return *static_cast<const Floats*>(from); }
inline void store(void* to, Floats value) { *static_cast<Floats*>(to) = value; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats splat(float value) { return value - Floats{}; }
// The sum of all lanes.
inline float total(Floats value) {
  float sum = 0;
  for (int lane = 0; lane < kWidth; ++lane) sum += value[lane];
  return sum;
}

typedef uint16_t Halves __attribute__((vector_size(kWidth * sizeof(uint16_t)), aligned(2), may_alias));

// kWidth neighbours of an array of any type, from element `index` on, as float32.
inline Floats load(const void* base, int64_t index, DType dtype) {
  switch (dtype) {
    case DType::float32: return load(static_cast<const float*>(base) + index);
    case DType::bfloat16: {
      const Halves bits = *reinterpret_cast<const Halves*>(static_cast<const uint16_t*>(base) + index);
      return (Floats)(__builtin_convertvector(bits, Bits) << 16);
    }
    default: break;
  }
  Floats value;
  for (int lane = 0; lane < kWidth; ++lane) value[lane] = load_as_float(base, index + lane, dtype);
  return value;
}

// The inverse; rounds to nearest, ties to even.
inline void store(void* base, int64_t index, DType dtype, Floats value) {
  switch (dtype) {
    case DType::float32: return store(static_cast<float*>(base) + index, value);
    case DType::bfloat16: {
      const Bits bits = (Bits)value, rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
      const Bits kept = value == value ? rounded : rounded * 0 + 0x7fc0u;
      *reinterpret_cast<Halves*>(static_cast<uint16_t*>(base) + index) = __builtin_convertvector(kept, Halves);
      return;
    }
    default: break;
  }
  for (int lane = 0; lane < kWidth; ++lane) store_from_float(base, index + lane, dtype, value[lane]);
}

// e^x for x <= 0, with an error of about one unit in the last place. NaN gives NaN; subnormal results are 0. Method:
// e^x = 2^n e^r with n an integer and |r| <= log(2) / 2; e^r = 1 + r + r^2 p(r) with p a minimax polynomial.
__attribute__((always_inline)) inline Floats exponential(Floats x) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // log(2) in two parts: the first product is exact
  Floats p = r * 1.381454011e-3f + 8.368745143e-3f;
  p = p * r + 4.166839079e-2f;
  p = p * r + 0.166665204f;
  p = p * r + 0.4999999343f;
  p = p * (r * r) + r + 1.0f;
  const Floats power = (Floats)(((Bits)shifted << 23) + 0x3f800000u);
  return x < -87.0f ? Floats{} : p * power;
}

}  // namespace
}  // namespace seed_fast

// bias_gelu on the CPU: the exact GELU of x + bias.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "nearest_code_cpu.h"  // Isa

namespace seed_fast {

// x [N, D], rows `x_stride` elements apart, and bias [D] -> y [N, D] of x's type, rows `y_stride` apart; it may be x
// itself. The sum and its GELU are float32.
struct BiasGelu {
  const void* x;
  DType x_dtype;
  int64_t x_stride;
  const void* bias;
  DType bias_dtype;
  void* y;
  int64_t y_stride;
  int64_t N, D;
};

void bias_gelu_cpu(const BiasGelu& problem, int threads, Isa isa);

}  // namespace seed_fast

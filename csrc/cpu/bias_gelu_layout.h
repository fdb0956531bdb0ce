// What the kernels of bias_gelu and their caller share.
#pragma once

#include "bias_gelu_cpu.h"

namespace seed_fast {

// A kernel computes one row; bias [D] is float32.
using BiasGeluKernel = void (*)(const BiasGelu& problem, const float* bias, int64_t row);

extern const BiasGeluKernel bias_gelu_scalar;
extern const BiasGeluKernel bias_gelu_avx2;
extern const BiasGeluKernel bias_gelu_avx512;

}  // namespace seed_fast

// Approximate functions of the hardware that few kernels need; an extension of device.h.
#pragma once

#include "device.h"

#ifndef __CUDACC__
#include "device_host_math.h"
#else

namespace seed_fast::device {

// 1 / value with an error of at most one unit in the last place. Values and results below 2^-126 are treated as 0.
SEED_FAST_DEVICE float reciprocal(float value) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(value));
  return inverse;
}

}  // namespace seed_fast::device

#endif

// What a tensor core makes of products and a sum. NVIDIA does not say how it rounds; csrc/cuda/device.h has the bound
// that the kernels rely on, and these models lie at both ends of it and in between.
#pragma once

#include <cstdint>

#include "machine.h"

namespace ptx {

// c + the sum of `count` products, each exact in double.
//   exact:      rounded once, to nearest
//   truncating: four products at a time, every term cut off at 2^-23 of the largest, and the sum rounded towards zero
//   worst:      four at a time, off by 6 * 2^-23 of the sum of the magnitudes; `noise` says to which side
float sum_of_products(const double* products, int count, float c, Arithmetic how, uint32_t noise);

// Numbers without pattern, the same for the same arguments.
uint32_t scramble(uint32_t a, uint32_t b);

}  // namespace ptx

// Models of how a tensor core rounds a sum of products. NVIDIA does not document it; csrc/cuda/device.h states the
// error bound on which the kernels rely. One model has no error, one truncates as Volta does, one has the largest error
// that the bound permits.
#pragma once

#include <cstdint>

#include "machine.h"

namespace ptx {

// c + the sum of `count` products, each exact in double.
//   exact:      rounded once, to nearest
//   truncating: four products at a time, every term cut off at 2^-23 of the largest, and the sum rounded towards zero
//   worst:      four at a time, wrong by 6 * 2^-23 of the sum of the magnitudes; `noise` decides to which side
float sum_of_products(const double* products, int count, float c, Arithmetic how, uint32_t noise);

// A hash of two numbers, used as a reproducible random number.
uint32_t scramble(uint32_t a, uint32_t b);

}  // namespace ptx

// What the kernels of add_layer_norm and their caller share.
#pragma once

#include "add_layer_norm_cpu.h"

namespace seed_fast {

// A kernel computes one row; `values` is scratch memory of D floats.
using AddLayerNormKernel = void (*)(const AddLayerNorm& problem, int64_t row, float* values);

extern const AddLayerNormKernel add_layer_norm_scalar;
extern const AddLayerNormKernel add_layer_norm_avx2;
extern const AddLayerNormKernel add_layer_norm_avx512;

}  // namespace seed_fast

// add_layer_norm on the CPU: a sum of two matrices and its layer norm, row by row.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "nearest_code_cpu.h"  // Isa

namespace seed_fast {

// Rows of D neighbours, `stride` elements apart.
struct NormMatrix {
  void* data;
  DType dtype;
  int64_t stride;
};

// s = x + delta, rounded to x's type; norm = (s - mean) / sqrt(variance + eps) * weight + bias, per row in float32.
// x, delta [N, D]; weight, bias [D] -> stream [N, D] of x's type: s, or with `post_norm` the norm (data null: not
// wanted; it may be x itself); y [N, D]: the norm.
struct AddLayerNorm {
  NormMatrix x, delta;  // only read
  const float *weight, *bias;
  float eps;
  bool post_norm;
  NormMatrix stream, y;
  int64_t N, D;
};

void add_layer_norm_cpu(const AddLayerNorm& problem, int threads, Isa isa);

}  // namespace seed_fast

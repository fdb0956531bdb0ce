// What the add_layer_norm kernels and their launcher share: the problem, and which rows a kernel can hold.
#pragma once

namespace seed_fast::add_layer_norm {

// The only argument of every kernel. Inputs: x and delta [N, D], weight and bias [D]. Outputs: y [N, D], contiguous,
// and stream [N, D] of x's type, which may be null (not written) or the same memory as x. The elements of a row are
// contiguous; rows are `stride` elements apart.
struct Problem {
  const void *x, *delta;
  const float *weight, *bias;
  void *stream, *y;
  long long rows, x_stride, delta_stride, stream_stride;
  int x_dtype, delta_dtype, y_dtype;
  int d;
  int post_norm;  // the stream receives the norm instead of the sum
  float eps;
};

// A block processes one row; each thread holds kSteps vectors of four neighbouring elements in registers.
constexpr int kThreads = 128, kWideThreads = 512, kSteps = 4;
constexpr int kMaxDim = kThreads * 4 * kSteps, kMaxWideDim = kWideThreads * 4 * kSteps;  // 2048 and 8192

}  // namespace seed_fast::add_layer_norm

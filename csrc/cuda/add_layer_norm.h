// What the add_layer_norm kernels and their launcher share: the problem, and which rows a kernel can hold.
#pragma once

namespace seed_fast::add_layer_norm {

// The one argument of every kernel. x, delta [N, D], weight, bias [D] -> stream [N, D] of x's type (null: not wanted;
// it may be x itself), y [N, D] contiguous. Rows are contiguous, `stride` elements apart.
struct Problem {
  const void *x, *delta;
  const float *weight, *bias;
  void *stream, *y;
  long long rows, x_stride, delta_stride, stream_stride;
  int x_dtype, delta_dtype, y_dtype;
  int d;
  int post_norm;  // the stream gets the norm, not the sum
  float eps;
};

// A block takes a row; four neighbours a step stay in each thread's registers.
constexpr int kThreads = 128, kWideThreads = 512, kSteps = 4;
constexpr int kMaxDim = kThreads * 4 * kSteps, kMaxWideDim = kWideThreads * 4 * kSteps;  // 2048 and 8192

}  // namespace seed_fast::add_layer_norm

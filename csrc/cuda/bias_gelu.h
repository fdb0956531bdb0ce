// What the bias_gelu kernels and their launcher share.
#pragma once

namespace seed_fast::bias_gelu {

// The one argument of every kernel. x [N, D], bias [D] -> y [N, D] of x's type (it may be x itself). Rows are
// contiguous, `stride` elements apart. Block (i, j) takes some columns and `rows_per_block` rows.
struct Problem {
  const void *x, *bias;
  void* y;
  long long rows, x_stride, y_stride;
  int x_dtype, bias_dtype;
  int d;
  int rows_per_block;
};

constexpr int kThreads = 128;
constexpr int kRowsAtOnce = 2;  // that a thread loads before it stores the first

}  // namespace seed_fast::bias_gelu

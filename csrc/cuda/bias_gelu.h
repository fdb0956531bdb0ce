// What the bias_gelu kernels and their launcher share.
#pragma once

namespace seed_fast::bias_gelu {

// The only argument of every kernel. Inputs: x [N, D] and bias [D]. Output: y [N, D] of x's type, which may be the same
// memory as x. The elements of a row are contiguous; rows are `stride` elements apart. Block (i, j) of the grid
// computes the i-th range of columns (one or more per thread) in the j-th range of `rows_per_block` rows.
struct Problem {
  const void *x, *bias;
  void* y;
  long long rows, x_stride, y_stride;
  int x_dtype, bias_dtype;
  int d;
  int rows_per_block;
};

constexpr int kThreads = 128;
constexpr int kRowsAtOnce = 2;  // rows that a thread loads before it stores the first of them

}  // namespace seed_fast::bias_gelu

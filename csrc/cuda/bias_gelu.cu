// bias_gelu on CUDA: y = GELU(x + bias). Each thread loads the bias of its columns once and processes several rows.
#include "bias_gelu.h"
#include "device_math.h"
#include "elements.h"
#include "gelu_coefficients.h"

namespace seed_fast::bias_gelu {

using namespace seed_fast::device;

// GELU(x) = x Phi(x) by the two fits of gelu_coefficients.h. Both are evaluated and one is selected: so warps don't
// diverge, and it is still cheaper than the error function.
SEED_FAST_DEVICE float exact_gelu(float x) {
  using namespace gelu;
  const float size = x < 0 ? -x : x, square = x * x;
  // Near zero: x (0.5 + x (n0 + n1 x^2 + ... + n5 x^10)).
  float near = multiply_add(square, kNear5, kNear4);
  near = multiply_add(near, square, kNear3);
  near = multiply_add(near, square, kNear2);
  near = multiply_add(near, square, kNear1);
  near = multiply_add(near, square, kNear0);
  near = x * multiply_add(x, near, 0.5f);
  // Beyond: max(x, 0) - |x| Phi(-|x|), with Phi(-a) = exp(-a^2 / 2) (f1 t + ... + f7 t^7).
  const float t = reciprocal(multiply_add(size, kFarPole, 1.0f));
  float far = multiply_add(t, kFar7, kFar6);
  far = multiply_add(far, t, kFar5);
  far = multiply_add(far, t, kFar4);
  far = multiply_add(far, t, kFar3);
  far = multiply_add(far, t, kFar2);
  far = multiply_add(far, t, kFar1);
  constexpr float kMinusHalfLog2e = -0x1.715476p-1f;
  far = far * t * power_of_two(square * kMinusHalfLog2e);
  far = (x > 0 ? x : 0.0f) - (size > kFarEnd ? kFarEnd : size) * far;
  return size < kNearEdge ? near : far;
}

// x, bias and y of type T with 16-byte aligned rows; each thread has kCount neighbouring columns (16 bytes).
template <class T, int kCount>
SEED_FAST_DEVICE void gelu_columns(const Problem& p) {
  const long long column = (block_index_x() * kThreads + thread_index()) * kCount;
  if (column >= p.d) return;
  const T* const x = static_cast<const T*>(p.x) + column;
  T* const y = static_cast<T*>(p.y) + column;
  float bias[kCount];
  load(static_cast<const T*>(p.bias) + column, bias);
  const long long first = block_index_y() * p.rows_per_block;
  const long long end = first + p.rows_per_block < p.rows ? first + p.rows_per_block : p.rows;
  // Load kRowsAtOnce rows, so that their loads overlap, then compute and store them.
  for (long long row = first; row < end; row += kRowsAtOnce) {
    float value[kRowsAtOnce][kCount];
    SEED_FAST_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (row + i < end) load(x + (row + i) * p.x_stride, value[i]);
    }
    SEED_FAST_UNROLL
    for (int i = 0; i < kRowsAtOnce; ++i) {
      if (row + i >= end) break;
      SEED_FAST_UNROLL
      for (int j = 0; j < kCount; ++j) value[i][j] = exact_gelu(value[i][j] + bias[j]);
      store(y + (row + i) * p.y_stride, value[i]);
    }
  }
}

SEED_FAST_KERNEL(128, 8) bias_gelu_float32_kernel(Problem p) { gelu_columns<float, 4>(p); }
SEED_FAST_KERNEL(128, 8) bias_gelu_float16_kernel(Problem p) { gelu_columns<Half, 8>(p); }
SEED_FAST_KERNEL(128, 8) bias_gelu_bfloat16_kernel(Problem p) { gelu_columns<BFloat16, 8>(p); }

// Any width, alignment and mix of types; each thread has one column.
SEED_FAST_KERNEL(128, 8) bias_gelu_any_kernel(Problem p) {
  const long long column = block_index_x() * kThreads + thread_index();
  if (column >= p.d) return;
  const float bias = load(p.bias, p.bias_dtype, column);
  const long long first = block_index_y() * p.rows_per_block;
  const long long end = first + p.rows_per_block < p.rows ? first + p.rows_per_block : p.rows;
  for (long long row = first; row < end; ++row) {
    const float value = load(p.x, p.x_dtype, row * p.x_stride + column) + bias;
    store(p.y, p.x_dtype, row * p.y_stride + column, exact_gelu(value));
  }
}

}  // namespace seed_fast::bias_gelu

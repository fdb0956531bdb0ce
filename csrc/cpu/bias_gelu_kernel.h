// The kernel of bias_gelu, written once with the compiler's vector types (lanes.h).
#include "bias_gelu_layout.h"
#include "gelu_coefficients.h"
#include "lanes.h"

namespace seed_fast {
namespace {

// GELU(x) = x Phi(x) by the two fits of gelu_coefficients.h; both are evaluated and one is selected.
inline Floats exact_gelu(Floats x) {
  using namespace gelu;
  const Floats size = x < 0.0f ? -x : x, square = x * x;
  // Near zero: x (0.5 + x (n0 + n1 x^2 + ... + n5 x^10)).
  Floats near = square * kNear5 + kNear4;
  near = near * square + kNear3;
  near = near * square + kNear2;
  near = near * square + kNear1;
  near = near * square + kNear0;
  near = x * (x * near + 0.5f);
  // Beyond: max(x, 0) - |x| Phi(-|x|), with Phi(-a) = exp(-a^2 / 2) (f1 t + ... + f7 t^7).
  const Floats t = 1.0f / (size * kFarPole + 1.0f);
  Floats far = t * kFar7 + kFar6;
  far = far * t + kFar5;
  far = far * t + kFar4;
  far = far * t + kFar3;
  far = far * t + kFar2;
  far = far * t + kFar1;
  far = far * t * exponential(square * -0.5f);
  const Floats clamped = size > kFarEnd ? splat(kFarEnd) : size;
  far = (x > 0.0f ? x : Floats{}) - clamped * far;
  return size < kNearEdge ? near : far;
}

// Computes one row; the elements after the last whole register are computed in one more register.
void gelu_row(const BiasGelu& p, const float* bias, int64_t row) {
  // Local copies, because the compiler has to assume that a store may change the problem.
  const DType type = p.x_dtype;
  const int64_t bytes = type == DType::float32 ? 4 : 2, D = p.D, whole = D - D % kWidth;
  const char* const x = static_cast<const char*>(p.x) + row * p.x_stride * bytes;
  char* const y = static_cast<char*>(p.y) + row * p.y_stride * bytes;
  for (int64_t at = 0; at < whole; at += kWidth) store(y, at, type, exact_gelu(load(x, at, type) + load(bias + at)));
  Floats rest = {};
  for (int64_t at = whole; at < D; ++at) rest[at - whole] = load_as_float(x, at, type) + bias[at];
  rest = exact_gelu(rest);
  for (int64_t at = whole; at < D; ++at) store_from_float(y, at, type, rest[at - whole]);
}

}  // namespace
}  // namespace seed_fast

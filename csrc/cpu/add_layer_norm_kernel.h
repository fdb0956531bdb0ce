// The kernel of add_layer_norm, written once with the compiler's vector types (lanes.h).
#include <cmath>

#include "add_layer_norm_layout.h"
#include "lanes.h"

namespace seed_fast {
namespace {

constexpr int64_t kRun = 32 * kWidth;  // elements that one sum takes: sums of sums keep the rounding of wide rows small

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

inline void* row_of(const NormMatrix& matrix, int64_t row) {
  return static_cast<char*>(matrix.data) + row * matrix.stride * (matrix.dtype == DType::float32 ? 4 : 2);
}

inline float rounded(float value, DType dtype) {
  if (dtype == DType::float32) return value;
  uint16_t bits;
  store_from_float(&bits, 0, dtype, value);
  return load_as_float(&bits, 0, dtype);
}
inline Floats rounded(Floats value, DType dtype) {
  if (dtype == DType::float32) return value;
  uint16_t bits[kWidth];
  store(bits, 0, dtype, value);
  return load(bits, 0, dtype);
}

// With `any` the types are known at run time alone, and the template parameters for them have no meaning.
template <bool any, DType delta_dtype = DType::float32>
void norm_row_of(const AddLayerNorm& p, int64_t row, float* values) {
  // Local copies, because the compiler has to assume that a store may change the problem.
  const int64_t D = p.D, whole = D - D % kWidth;
  const DType x_type = any ? p.x.dtype : DType::float32, delta_type = any ? p.delta.dtype : delta_dtype;
  const DType y_type = any ? p.y.dtype : delta_dtype;
  const float share = 1.0f / float(D);
  const float *const weight = p.weight, *const bias = p.bias;
  const void* const x = row_of(p.x, row);
  const void* const delta = row_of(p.delta, row);
  void* const y = row_of(p.y, row);
  void* const sum_to = p.stream.data == nullptr || p.post_norm ? nullptr : row_of(p.stream, row);
  void* const norm_to = p.stream.data == nullptr || !p.post_norm ? nullptr : row_of(p.stream, row);

  const auto sum_at = [&](int64_t at) {
    return rounded(load_as_float(x, at, x_type) + load_as_float(delta, at, delta_type), x_type);
  };

  // First the sum of x and delta, and a first mean, as an offset from the first element. Each value counts with its
  // share 1/D, so that no sum overflows.
  const float start = sum_at(0);
  Floats offsets = {};
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    Floats part = {};
    for (int64_t at = begin; at < least(begin + kRun, whole); at += kWidth) {
      const Floats value = rounded(load(x, at, x_type) + load(delta, at, delta_type), x_type);
      store(values + at, value);
      if (sum_to != nullptr) store(sum_to, at, x_type, value);
      part += (value - start) * share;
    }
    offsets += part;
  }
  float mean = start + total(offsets);
  float rest = 0;
  for (int64_t at = whole; at < D; ++at) {
    values[at] = sum_at(at);
    if (sum_to != nullptr) store_from_float(sum_to, at, x_type, values[at]);
    rest += (values[at] - start) * share;
  }
  mean += rest;

  // Then the variance: differences from the first mean are nearly exact, and their own mean corrects it.
  Floats lacks = {}, squares = {};
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    Floats lacking = {}, square = {};
    for (int64_t at = begin; at < least(begin + kRun, whole); at += kWidth) {
      const Floats difference = load(values + at) - mean;
      lacking += difference * share;
      square += difference * difference;
    }
    lacks += lacking;
    squares += square;
  }
  float lack = total(lacks), square = total(squares);
  for (int64_t at = whole; at < D; ++at) {
    const float difference = values[at] - mean;
    lack += difference * share;
    square += difference * difference;
  }
  square *= share;
  const float variance = square - lack * lack;  // of squares that overflow: infinity
  const float scale = 1.0f / std::sqrt((variance > 0 ? variance : square < __builtin_inff() ? 0.0f : square) + p.eps);

  for (int64_t at = 0; at < whole; at += kWidth) {
    const Floats norm = (load(values + at) - mean - lack) * scale * load(weight + at) + load(bias + at);
    store(y, at, y_type, norm);
    if (norm_to != nullptr) store(norm_to, at, x_type, norm);
  }
  for (int64_t at = whole; at < D; ++at) {
    const float norm = (values[at] - mean - lack) * scale * weight[at] + bias[at];
    store_from_float(y, at, y_type, norm);
    if (norm_to != nullptr) store_from_float(norm_to, at, x_type, norm);
  }
}

// The types that the inference plan uses get code of their own.
void norm_row(const AddLayerNorm& p, int64_t row, float* values) {
  if (p.x.dtype != DType::float32 || p.delta.dtype != p.y.dtype || p.y.dtype == DType::float16)
    return norm_row_of<true>(p, row, values);
  if (p.y.dtype == DType::float32) return norm_row_of<false, DType::float32>(p, row, values);
  norm_row_of<false, DType::bfloat16>(p, row, values);
}

}  // namespace
}  // namespace seed_fast

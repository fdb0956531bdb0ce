// The kernel of add_layer_norm, written once with the compiler's vector types (lanes.h).
#include <cmath>

#include "add_layer_norm_layout.h"
#include "lanes.h"

namespace seed_fast {
namespace {

constexpr int64_t kRun = 32 * kWidth;  // elements of a partial sum; adding partial sums keeps rounding errors small

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// The address of a row.
inline void* row_of(const NormMatrix& matrix, int64_t row) {
  return static_cast<char*>(matrix.data) + row * matrix.stride * (matrix.dtype == DType::float32 ? 4 : 2);
}

// The value rounded to the dtype.
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

// Computes one row; `values` is scratch memory of D floats. Without `any`, x is float32, and delta and y have the type
// of the template parameter; with it, all types are read from the problem at run time.
//
// Mean and variance are computed in three steps: an approximate mean, as the first element plus the mean difference
// from it; the differences from that mean, which are nearly exact; and from these the correction of the mean and the
// variance.
template <bool any, DType delta_dtype = DType::float32>
void norm_row_of(const AddLayerNorm& p, int64_t row, float* values) {
  // Local copies, because the compiler has to assume that a store may change the problem.
  const int64_t D = p.D, whole = D - D % kWidth;
  const DType x_type = any ? p.x.dtype : DType::float32, delta_type = any ? p.delta.dtype : delta_dtype;
  const DType y_type = any ? p.y.dtype : delta_dtype;
  const float inverse_d = 1.0f / float(D);
  const float *const weight = p.weight, *const bias = p.bias;
  const void* const x = row_of(p.x, row);
  const void* const delta = row_of(p.delta, row);
  void* const y = row_of(p.y, row);
  void* const sum_to = p.stream.data == nullptr || p.post_norm ? nullptr : row_of(p.stream, row);
  void* const norm_to = p.stream.data == nullptr || !p.post_norm ? nullptr : row_of(p.stream, row);

  const auto sum_at = [&](int64_t at) {
    return rounded(load_as_float(x, at, x_type) + load_as_float(delta, at, delta_type), x_type);
  };

  // Add x and delta, and compute the approximate mean. Differences are multiplied by 1/D before they are summed, so
  // that the sum cannot overflow.
  const float start = sum_at(0);
  Floats offsets = {};
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    Floats part = {};
    for (int64_t at = begin; at < least(begin + kRun, whole); at += kWidth) {
      const Floats value = rounded(load(x, at, x_type) + load(delta, at, delta_type), x_type);
      store(values + at, value);
      if (sum_to != nullptr) store(sum_to, at, x_type, value);
      part += (value - start) * inverse_d;
    }
    offsets += part;
  }
  float mean = start + total(offsets);
  float rest = 0;
  for (int64_t at = whole; at < D; ++at) {
    values[at] = sum_at(at);
    if (sum_to != nullptr) store_from_float(sum_to, at, x_type, values[at]);
    rest += (values[at] - start) * inverse_d;
  }
  mean += rest;

  // Correction of the mean, and variance, from the differences.
  Floats corrections = {}, squares = {};
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    Floats part = {}, square = {};
    for (int64_t at = begin; at < least(begin + kRun, whole); at += kWidth) {
      const Floats difference = load(values + at) - mean;
      part += difference * inverse_d;
      square += difference * difference;
    }
    corrections += part;
    squares += square;
  }
  float correction = total(corrections), square = total(squares);
  for (int64_t at = whole; at < D; ++at) {
    const float difference = values[at] - mean;
    correction += difference * inverse_d;
    square += difference * difference;
  }
  square *= inverse_d;
  const float variance = square - correction * correction;  // infinity if the squares overflow
  const float scale = 1.0f / std::sqrt((variance > 0 ? variance : square < __builtin_inff() ? 0.0f : square) + p.eps);

  // Normalise and store.
  for (int64_t at = 0; at < whole; at += kWidth) {
    const Floats norm = (load(values + at) - mean - correction) * scale * load(weight + at) + load(bias + at);
    store(y, at, y_type, norm);
    if (norm_to != nullptr) store(norm_to, at, x_type, norm);
  }
  for (int64_t at = whole; at < D; ++at) {
    const float norm = (values[at] - mean - correction) * scale * weight[at] + bias[at];
    store_from_float(y, at, y_type, norm);
    if (norm_to != nullptr) store_from_float(norm_to, at, x_type, norm);
  }
}

// Computes one row, with specialised code for the types that the inference plan uses.
void norm_row(const AddLayerNorm& p, int64_t row, float* values) {
  if (p.x.dtype != DType::float32 || p.delta.dtype != p.y.dtype || p.y.dtype == DType::float16)
    return norm_row_of<true>(p, row, values);
  if (p.y.dtype == DType::float32) return norm_row_of<false, DType::float32>(p, row, values);
  norm_row_of<false, DType::bfloat16>(p, row, values);
}

}  // namespace
}  // namespace seed_fast

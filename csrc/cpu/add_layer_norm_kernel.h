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

void norm_row(const AddLayerNorm& p, int64_t row, float* values) {
  const int64_t D = p.D, whole = D - D % kWidth;
  const float share = 1.0f / float(D);
  const void* const x = row_of(p.x, row);
  const void* const delta = row_of(p.delta, row);
  void* const stream = p.stream.data == nullptr ? nullptr : row_of(p.stream, row);
  void* const y = row_of(p.y, row);

  const auto sum_at = [&](int64_t at) {
    return rounded(load_as_float(x, at, p.x.dtype) + load_as_float(delta, at, p.delta.dtype), p.x.dtype);
  };

  // The sum, and a first mean, as an offset from the first element. Each value counts with its share, so that no sum
  // overflows.
  const float start = sum_at(0);
  Floats offsets = {};
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    Floats part = {};
    for (int64_t at = begin; at < least(begin + kRun, whole); at += kWidth) {
      const Floats value = rounded(load(x, at, p.x.dtype) + load(delta, at, p.delta.dtype), p.x.dtype);
      store(values + at, value);
      if (stream != nullptr && !p.post_norm) store(stream, at, p.x.dtype, value);
      part += (value - start) * share;
    }
    offsets += part;
  }
  float mean = start + total(offsets);
  float rest = 0;
  for (int64_t at = whole; at < D; ++at) {
    values[at] = sum_at(at);
    if (stream != nullptr && !p.post_norm) store_from_float(stream, at, p.x.dtype, values[at]);
    rest += (values[at] - start) * share;
  }
  mean += rest;

  // Differences from it are nearly exact, and their mean is what it lacks.
  Floats lacks = {}, squares = {};
  for (int64_t begin = 0; begin < whole; begin += kRun) {
    Floats lacking = {}, square = {};
    for (int64_t at = begin; at < least(begin + kRun, whole); at += kWidth) {
      const Floats difference = load(values + at) - mean;
      store(values + at, difference);
      lacking += difference * share;
      square += difference * difference;
    }
    lacks += lacking;
    squares += square;
  }
  float lack = total(lacks), square = total(squares);
  for (int64_t at = whole; at < D; ++at) {
    values[at] -= mean;
    lack += values[at] * share;
    square += values[at] * values[at];
  }
  square *= share;
  const float variance = square - lack * lack;  // of squares that overflow: infinity
  const float scale = 1.0f / std::sqrt((variance > 0 ? variance : square < __builtin_inff() ? 0.0f : square) + p.eps);

  const bool both = stream != nullptr && p.post_norm;
  for (int64_t at = 0; at < whole; at += kWidth) {
    const Floats norm = (load(values + at) - lack) * scale * load(p.weight + at) + load(p.bias + at);
    store(y, at, p.y.dtype, norm);
    if (both) store(stream, at, p.x.dtype, norm);
  }
  for (int64_t at = whole; at < D; ++at) {
    const float norm = (values[at] - lack) * scale * p.weight[at] + p.bias[at];
    store_from_float(y, at, p.y.dtype, norm);
    if (both) store_from_float(stream, at, p.x.dtype, norm);
  }
}

}  // namespace
}  // namespace seed_fast

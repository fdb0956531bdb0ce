// add_layer_norm on CUDA: one pass over x and delta leaves their sum and its layer norm.
//
// Statistics are float32, from values in registers. First a mean, as an offset from the row's first element; then each
// value's difference from it, which is nearly exact; then what that mean lacked, and the variance, both from the
// differences. So a constant row has variance 0, a row far from zero loses no digits to its offset, and an outlier in
// front spoils nothing. Each value counts with its share 1/D, so that no sum overflows. Sums have one order: lanes by a
// butterfly, then warps.
#include "add_layer_norm.h"
#include "elements.h"

namespace seed_fast::add_layer_norm {

using namespace seed_fast::device;

// The sums of some values over the block, the same in all threads. per_warp: shared memory of this call alone.
template <int kWarps, int kCount>
SEED_FAST_DEVICE void sum_over_block(float (&values)[kCount], float (*per_warp)[kWarps]) {
  SEED_FAST_UNROLL
  for (int i = 0; i < kCount; ++i) {
    SEED_FAST_UNROLL
    for (int mask = 1; mask < kWarp; mask *= 2) values[i] += shuffle_xor(values[i], mask);
    if (thread_index() % kWarp == 0) per_warp[i][thread_index() / kWarp] = values[i];
  }
  barrier();
  SEED_FAST_UNROLL
  for (int i = 0; i < kCount; ++i) {
    values[i] = 0;
    SEED_FAST_UNROLL
    for (int warp = 0; warp < kWarps; ++warp) values[i] += per_warp[i][warp];
  }
}

// 1 / standard deviation, from the mean and the mean square of some differences. Where squares overflow it is 0.
SEED_FAST_DEVICE float inverse_deviation(float lack, float square, float eps) {
  const float variance = square - lack * lack;
  return 1.0f / square_root((variance > 0 ? variance : square < infinity() ? 0.0f : square) + eps);
}

// A float32 row, with delta and y of type T.
template <int kBlock, class T>
SEED_FAST_DEVICE void norm_row(const Problem& p) {
  constexpr int kWarps = kBlock / kWarp, kStep = kBlock * 4;
  SEED_FAST_SHARED(float, first_sums, [1][kWarps]);
  SEED_FAST_SHARED(float, second_sums, [2][kWarps]);
  const long long row = block_index_x();
  const int begin = thread_index() * 4;
  const float* const x = static_cast<const float*>(p.x) + row * p.x_stride;
  const T* const delta = static_cast<const T*>(p.delta) + row * p.delta_stride;
  float* const stream = p.stream ? static_cast<float*>(p.stream) + row * p.stream_stride : nullptr;
  T* const y = static_cast<T*>(p.y) + row * p.d;
  const float share = 1.0f / static_cast<float>(p.d);

  // All loads before the first barrier and all stores after it: the stream may be x, whose first element all threads
  // read.
  const float start = x[0] + to_float(delta[0]);
  float value[kSteps][4] = {}, added[kSteps][4] = {};
  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (begin + i * kStep >= p.d) break;
    load(x + begin + i * kStep, value[i]);
    load(delta + begin + i * kStep, added[i]);
  }
  float offset[1] = {};
  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (begin + i * kStep >= p.d) break;
    SEED_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      value[i][j] += added[i][j];
      offset[0] = multiply_add(value[i][j] - start, share, offset[0]);
    }
  }
  sum_over_block<kWarps>(offset, first_sums);
  const float mean = start + offset[0];

  float sums[2] = {};  // what the mean lacks, and the squares
  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (begin + i * kStep >= p.d) break;
    if (stream && !p.post_norm) store(stream + begin + i * kStep, value[i]);
    SEED_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      value[i][j] -= mean;
      sums[0] = multiply_add(value[i][j], share, sums[0]);
      sums[1] = multiply_add(value[i][j], value[i][j], sums[1]);
    }
  }
  sum_over_block<kWarps>(sums, second_sums);
  const float scale = inverse_deviation(sums[0], sums[1] * share, p.eps);

  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    const int at = begin + i * kStep;
    if (at >= p.d) break;
    float weight[4], bias[4];
    load(p.weight + at, weight);
    load(p.bias + at, bias);
    SEED_FAST_UNROLL
    for (int j = 0; j < 4; ++j) value[i][j] = multiply_add((value[i][j] - sums[0]) * scale, weight[j], bias[j]);
    store(y + at, value[i]);
    if (stream && p.post_norm) store(stream + at, value[i]);
  }
}

// Rows of up to 2048 elements, 16-byte aligned; x float32, delta and y of one type.
SEED_FAST_KERNEL(128, 8) add_layer_norm_float32_kernel(Problem p) { norm_row<kThreads, float>(p); }
SEED_FAST_KERNEL(128, 8) add_layer_norm_float16_kernel(Problem p) { norm_row<kThreads, Half>(p); }
SEED_FAST_KERNEL(128, 8) add_layer_norm_bfloat16_kernel(Problem p) { norm_row<kThreads, BFloat16>(p); }

// The same up to 8192.
SEED_FAST_KERNEL(512, 2) add_layer_norm_wide_float32_kernel(Problem p) { norm_row<kWideThreads, float>(p); }
SEED_FAST_KERNEL(512, 2) add_layer_norm_wide_float16_kernel(Problem p) { norm_row<kWideThreads, Half>(p); }
SEED_FAST_KERNEL(512, 2) add_layer_norm_wide_bfloat16_kernel(Problem p) { norm_row<kWideThreads, BFloat16>(p); }

// Any width, alignment and types: three passes over a row, which its block keeps in the cache. Each thread returns to
// the elements that it alone reads and writes, so the stream may be x here too.
SEED_FAST_KERNEL(128, 8) add_layer_norm_any_kernel(Problem p) {
  constexpr int kWarps = kThreads / kWarp;
  SEED_FAST_SHARED(float, first_sums, [1][kWarps]);
  SEED_FAST_SHARED(float, second_sums, [2][kWarps]);
  const long long x_row = block_index_x() * p.x_stride, delta_row = block_index_x() * p.delta_stride;
  const long long stream_row = block_index_x() * p.stream_stride, y_row = block_index_x() * p.d;
  const float share = 1.0f / static_cast<float>(p.d);
  // x + delta as the stream holds it, rounded to x's type.
  const auto sum_at = [&](int at) {
    const float sum = load(p.x, p.x_dtype, x_row + at) + load(p.delta, p.delta_dtype, delta_row + at);
    if (p.x_dtype == kFloat32) return sum;
    float rounded, unused;
    p.x_dtype == kFloat16 ? unpack<Half>(pack<Half>(sum, 0), rounded, unused)
                          : unpack<BFloat16>(pack<BFloat16>(sum, 0), rounded, unused);
    return rounded;
  };

  const float start = sum_at(0);
  float offset[1] = {};
  for (int at = thread_index(); at < p.d; at += kThreads) {
    offset[0] = multiply_add(sum_at(at) - start, share, offset[0]);
  }
  sum_over_block<kWarps>(offset, first_sums);
  const float mean = start + offset[0];
  float sums[2] = {};
  for (int at = thread_index(); at < p.d; at += kThreads) {
    const float difference = sum_at(at) - mean;
    sums[0] = multiply_add(difference, share, sums[0]);
    sums[1] = multiply_add(difference, difference, sums[1]);
  }
  sum_over_block<kWarps>(sums, second_sums);
  const float scale = inverse_deviation(sums[0], sums[1] * share, p.eps);
  for (int at = thread_index(); at < p.d; at += kThreads) {
    const float sum = sum_at(at);
    const float norm = multiply_add((sum - mean - sums[0]) * scale, p.weight[at], p.bias[at]);
    store(p.y, p.y_dtype, y_row + at, norm);
    if (p.stream) store(p.stream, p.x_dtype, stream_row + at, p.post_norm ? norm : sum);
  }
}

}  // namespace seed_fast::add_layer_norm

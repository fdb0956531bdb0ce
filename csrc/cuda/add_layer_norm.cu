// add_layer_norm on CUDA: reads x and delta once and writes their sum, the new residual stream, and its layer norm. One
// block per row, whose values stay in registers.
//
// Mean and variance are computed in float32, in three steps:
//   1. an approximate mean: the row's first element plus the mean difference from it;
//   2. the difference of each value from that mean, which is nearly exact;
//   3. from these differences the correction of the mean (their own mean) and the variance.
// So the variance of a constant row is 0, and neither a mean far from zero nor an outlier as the first element costs
// precision. Differences are multiplied by 1/D before they are summed, so that the sum cannot overflow. Sums are added
// in one fixed order: a butterfly over the lanes of a warp, then over the warps.
#include "add_layer_norm.h"
#include "elements.h"

namespace seed_fast::add_layer_norm {

using namespace seed_fast::device;

// Replaces each of kCount values by its sum over the kWarps warps of the block, bit-equal in all threads. per_warp:
// shared memory that no other call uses, so that one barrier is enough.
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

// 1 / sqrt(variance + eps), given the differences' mean (`correction`) and mean square; 0 if the squares overflow.
SEED_FAST_DEVICE float inverse_deviation(float correction, float square, float eps) {
  const float variance = square - correction * correction;
  return 1.0f / square_root((variance > 0 ? variance : square < infinity() ? 0.0f : square) + eps);
}

// The row of this block, with x and the stream in float32 and delta and y of type T. kBlock: threads of the block,
// which holds up to kSteps * 4 elements per thread.
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
  const float inverse_d = 1.0f / static_cast<float>(p.d);

  // Load the row. The stream may be the same memory as x, whose first element all threads read: so all loads come
  // before the first barrier, and all stores after it.
  const float start = x[0] + to_float(delta[0]);
  float value[kSteps][4] = {}, added[kSteps][4] = {};
  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (begin + i * kStep >= p.d) break;
    load(x + begin + i * kStep, value[i]);
    load(delta + begin + i * kStep, added[i]);
  }
  // Step 1: add, and sum the differences from the first element.
  float offset[1] = {};
  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (begin + i * kStep >= p.d) break;
    SEED_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      value[i][j] += added[i][j];
      offset[0] = multiply_add(value[i][j] - start, inverse_d, offset[0]);
    }
  }
  sum_over_block<kWarps>(offset, first_sums);
  const float mean = start + offset[0];

  // Steps 2 and 3: differences from the mean, their mean and their squares. A pre-norm stream receives the sum.
  float sums[2] = {};  // mean of the differences; sum of their squares
  SEED_FAST_UNROLL
  for (int i = 0; i < kSteps; ++i) {
    if (begin + i * kStep >= p.d) break;
    if (stream && !p.post_norm) store(stream + begin + i * kStep, value[i]);
    SEED_FAST_UNROLL
    for (int j = 0; j < 4; ++j) {
      value[i][j] -= mean;
      sums[0] = multiply_add(value[i][j], inverse_d, sums[0]);
      sums[1] = multiply_add(value[i][j], value[i][j], sums[1]);
    }
  }
  sum_over_block<kWarps>(sums, second_sums);
  const float scale = inverse_deviation(sums[0], sums[1] * inverse_d, p.eps);

  // Normalise, and store y and, with post-norm, the stream.
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

// Rows of up to 2048 elements, 16-byte aligned; x in float32, delta and y of one type.
SEED_FAST_KERNEL(128, 8) add_layer_norm_float32_kernel(Problem p) { norm_row<kThreads, float>(p); }
SEED_FAST_KERNEL(128, 8) add_layer_norm_float16_kernel(Problem p) { norm_row<kThreads, Half>(p); }
SEED_FAST_KERNEL(128, 8) add_layer_norm_bfloat16_kernel(Problem p) { norm_row<kThreads, BFloat16>(p); }

// The same for rows of up to 8192 elements.
SEED_FAST_KERNEL(512, 2) add_layer_norm_wide_float32_kernel(Problem p) { norm_row<kWideThreads, float>(p); }
SEED_FAST_KERNEL(512, 2) add_layer_norm_wide_float16_kernel(Problem p) { norm_row<kWideThreads, Half>(p); }
SEED_FAST_KERNEL(512, 2) add_layer_norm_wide_bfloat16_kernel(Problem p) { norm_row<kWideThreads, BFloat16>(p); }

// Any width, alignment and mix of types. Three passes over the row read x and delta again, from the cache. The stream
// may be x here too: each element but the first is read and written by one thread only, and the first is read by all
// threads before the first barrier.
SEED_FAST_KERNEL(128, 8) add_layer_norm_any_kernel(Problem p) {
  constexpr int kWarps = kThreads / kWarp;
  SEED_FAST_SHARED(float, first_sums, [1][kWarps]);
  SEED_FAST_SHARED(float, second_sums, [2][kWarps]);
  const long long x_row = block_index_x() * p.x_stride, delta_row = block_index_x() * p.delta_stride;
  const long long stream_row = block_index_x() * p.stream_stride, y_row = block_index_x() * p.d;
  const float inverse_d = 1.0f / static_cast<float>(p.d);
  // x + delta, rounded to x's type as the stream holds it.
  const auto sum_at = [&](int at) {
    const float sum = load(p.x, p.x_dtype, x_row + at) + load(p.delta, p.delta_dtype, delta_row + at);
    if (p.x_dtype == kFloat32) return sum;
    float rounded, unused;
    p.x_dtype == kFloat16 ? unpack<Half>(pack<Half>(sum, 0), rounded, unused)
                          : unpack<BFloat16>(pack<BFloat16>(sum, 0), rounded, unused);
    return rounded;
  };

  // Step 1: an approximate mean.
  const float start = sum_at(0);
  float offset[1] = {};
  for (int at = thread_index(); at < p.d; at += kThreads) {
    offset[0] = multiply_add(sum_at(at) - start, inverse_d, offset[0]);
  }
  sum_over_block<kWarps>(offset, first_sums);
  const float mean = start + offset[0];
  // Steps 2 and 3: mean and squares of the differences from it.
  float sums[2] = {};
  for (int at = thread_index(); at < p.d; at += kThreads) {
    const float difference = sum_at(at) - mean;
    sums[0] = multiply_add(difference, inverse_d, sums[0]);
    sums[1] = multiply_add(difference, difference, sums[1]);
  }
  sum_over_block<kWarps>(sums, second_sums);
  const float scale = inverse_deviation(sums[0], sums[1] * inverse_d, p.eps);
  // Normalise and store.
  for (int at = thread_index(); at < p.d; at += kThreads) {
    const float sum = sum_at(at);
    const float norm = multiply_add((sum - mean - sums[0]) * scale, p.weight[at], p.bias[at]);
    store(p.y, p.y_dtype, y_row + at, norm);
    if (p.stream) store(p.stream, p.x_dtype, stream_row + at, p.post_norm ? norm : sum);
  }
}

}  // namespace seed_fast::add_layer_norm

// attention on CUDA in float32, for every architecture: float32 fused multiply-adds, neither TF32 nor float32 split
// into parts. It also handles float16 inputs whose rows are not 16-byte aligned, which attention_sm70.cu cannot load.
//
// A block computes 32 or 96 queries of one head (257 queries are three blocks of 96) and iterates over the keys, 32 at
// a time, with an online softmax: output sums are rescaled whenever a row's largest score grows (Milakov and Gimelshein
// 2018, arXiv:1805.02867). Scores stay in registers; weights go through shared memory. The 128 threads are arranged as
// 16 x 8; thread (i, j) computes the scores of queries i, i + 16, ... and keys j, j + 8, ...
//
// Three measures keep its error within twice that of two float32 matrix products with a softmax between them:
//   - the row's largest score is subtracted before scores are scaled. That difference is exact for scores near the
//     largest, which decide, so neither large scores nor an offset common to all keys costs precision;
//   - weights are computed by a polynomial, because ex2.approx has four times the error of one rounding;
//   - scores and outputs are sums of partial sums of 32 products each.
//
// architectures: 70 75
#include "attention.h"
#include "device.h"

namespace seed_fast::attention {

using device::barrier;
using device::infinity;
using device::maximum;
using device::multiply_add;
using device::shuffle_xor;
using device::thread_index;

constexpr int kTileKeys = 32;
constexpr int kDepth = 32;            // dimensions held in shared memory at a time
constexpr int kVectors = kDepth / 4;  // a row of them in vectors of four floats
constexpr int kPitch = kDepth + 4;    // of rows in shared memory: odd in 16-byte units, so eight rows don't share banks

SEED_FAST_DEVICE float4 load4(const float* from) { return *reinterpret_cast<const float4*>(from); }

// How four neighbouring elements are loaded and stored. The output is always aligned.
struct Aligned {
  using Element = float;
  static SEED_FAST_DEVICE float4 load(const float* from) { return load4(from); }
  static SEED_FAST_DEVICE void store(float* to, const float4& value) { *reinterpret_cast<float4*>(to) = value; }
};
struct UnalignedFloat : Aligned {
  static SEED_FAST_DEVICE float4 load(const float* from) { return float4{from[0], from[1], from[2], from[3]}; }
};
struct UnalignedHalf {
  using Element = unsigned short;
  static SEED_FAST_DEVICE float4 load(const unsigned short* from) {
    return float4{device::float_from_half(from[0]), device::float_from_half(from[1]), device::float_from_half(from[2]),
                  device::float_from_half(from[3])};
  }
  static SEED_FAST_DEVICE void store(unsigned short* to, const float4& value) {
    unsigned* const pairs = reinterpret_cast<unsigned*>(to);
    pairs[0] = device::half_pair(value.x, value.y);
    pairs[1] = device::half_pair(value.z, value.w);
  }
};

// Copies 32 rows x 32 columns of `source` into a tile of shared memory, converted to float32. Only `rows` and `columns`
// of them exist in the source; the rest of the tile becomes zero. kTilePitch: elements from row to row of the tile.
template <class Type, int kTilePitch>
SEED_FAST_DEVICE void stage(const typename Type::Element* source, long long stride, int rows, int columns,
                            float* tile) {
  constexpr int kCount = 32 * kVectors / kThreads, kRowStep = kThreads / kVectors;
  const int row = thread_index() / kVectors, column = thread_index() % kVectors * 4;
  const typename Type::Element* const from = source + row * stride + column;
  if (column >= columns) rows = 0;
  float4 loaded[kCount];
  SEED_FAST_UNROLL
  for (int i = 0; i < kCount; ++i) {
    loaded[i] = row + i * kRowStep < rows ? Type::load(from + i * kRowStep * stride) : float4{0, 0, 0, 0};
  }
  SEED_FAST_UNROLL
  for (int i = 0; i < kCount; ++i) {
    *reinterpret_cast<float4*>(tile + (row + i * kRowStep) * kTilePitch + column) = loaded[i];
  }
}

// sum + a.b.
SEED_FAST_DEVICE float dot(const float4& a, const float4& b, float sum) {
  sum = multiply_add(a.x, b.x, sum);
  sum = multiply_add(a.y, b.y, sum);
  sum = multiply_add(a.z, b.z, sum);
  return multiply_add(a.w, b.w, sum);
}

// sum += weight * value.
SEED_FAST_DEVICE void add_scaled(float weight, const float4& value, float (&sum)[4]) {
  sum[0] = multiply_add(weight, value.x, sum[0]);
  sum[1] = multiply_add(weight, value.y, sum[1]);
  sum[2] = multiply_add(weight, value.z, sum[2]);
  sum[3] = multiply_add(weight, value.w, sum[3]);
}

// 2^(difference * |scale|) for a difference <= 0, with a relative error of at most 1.3 * 2^-24; 0 if it is below
// 2^-125. NaN gives NaN. With scale 0 all scores are 0, so differences are 0, or -infinity for masked keys, and |scale|
// is replaced by 1. Method: 2^x = 2^n 2^f with n the nearest integer and |f| <= 1/2; 2^f = 1 + f p(f) with p a minimax
// polynomial.
SEED_FAST_DEVICE float weight_of(float difference, float scale) {
  constexpr float kRound = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float steepness = scale == 0 ? 1 : scale < 0 ? -scale : scale;
  const float shifted = multiply_add(difference, steepness, kRound);
  const float f = multiply_add(difference, steepness, kRound - shifted);
  float power = multiply_add(0x1.416b5ep-13f, f, 0x1.5f083p-10f);
  power = multiply_add(power, f, 0x1.3b2dep-7f);
  power = multiply_add(power, f, 0x1.c6af7cp-5f);
  power = multiply_add(power, f, 0x1.ebfbdcp-3f);
  power = multiply_add(power, f, 0x1.62e43p-1f);
  power = multiply_add(power, f, 1);
  const float scaled = device::float_from_bits(device::float_bits(power) + (device::float_bits(shifted) << 23));
  return shifted < kRound - 125 ? 0 : scaled;
}

// The kernel. Type: how rows are loaded and stored. kTile: queries of a block. kChunks: head width in units of 32,
// rounded up.
template <class Type, int kTile, int kChunks>
SEED_FAST_DEVICE void attend(const Problem& problem) {
  using Element = typename Type::Element;
  constexpr int kRows = kTile / 16, kKeys = kTileKeys / 8;  // queries and keys of one thread
  constexpr int kWeightPitch = kTileKeys + 8;               // four rows times eight keys fall into different banks
  SEED_FAST_SHARED(float, q_or_weights, [kTile * kWeightPitch]);
  SEED_FAST_SHARED(float, k_or_v, [kTileKeys * kPitch]);
  // Which queries of which head this block computes.
  const int i = thread_index() / 8, j = thread_index() % 8;
  const unsigned block = static_cast<unsigned>(device::block_index_x()), head = block / problem.query_blocks;
  const unsigned b = head / problem.heads, h = head % problem.heads;
  const int first_row = static_cast<int>(block % problem.query_blocks) * kTile;
  const auto start = [&](const Tensor& x) {
    return static_cast<const Element*>(x.data) + b * x.stride_b + h * x.stride_h;
  };
  const Element* const q = start(problem.q) + first_row * problem.q.stride_l;
  const Element *const k = start(problem.k), *const v = start(problem.v);
  const int end = problem.causal && problem.lk > first_row + kTile ? first_row + kTile : problem.lk;
  const float sign = problem.scale > 0 ? 1.0f : problem.scale < 0 ? -1.0f : 0.0f;

  // State of the online softmax for each query: output sums (of columns 4 j .. 4 j + 3 of each chunk), sum of weights
  // (of this thread's keys) and largest score.
  float sums[kRows][kChunks][4] = {}, total[kRows] = {}, largest[kRows];
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) largest[r] = -infinity();

  SEED_FAST_NO_UNROLL
  for (int first_key = 0; first_key < end; first_key += kTileKeys) {
    // First product: scores of all queries with 32 keys, 32 dimensions at a time.
    float score[kRows][kKeys] = {};
    SEED_FAST_NO_UNROLL
    for (int depth = 0; depth < problem.d; depth += kDepth) {
      barrier();  // all threads have finished reading the tiles that are overwritten now
      SEED_FAST_NO_UNROLL
      for (int row = 0; row < kTile; row += 32) {
        stage<Type, kPitch>(q + row * problem.q.stride_l + depth, problem.q.stride_l, problem.lq - first_row - row,
                            problem.d - depth, q_or_weights + row * kPitch);
      }
      stage<Type, kPitch>(k + first_key * problem.k.stride_l + depth, problem.k.stride_l, problem.lk - first_key,
                          problem.d - depth, k_or_v);
      barrier();
      const int columns = problem.d - depth < kDepth ? problem.d - depth : kDepth;
      float part[kRows][kKeys] = {};
      SEED_FAST_NO_UNROLL
      for (int at = 0; at < columns; at += 4) {
        float4 q_part[kRows];
        SEED_FAST_UNROLL
        for (int r = 0; r < kRows; ++r) q_part[r] = load4(q_or_weights + (i + 16 * r) * kPitch + at);
        SEED_FAST_UNROLL
        for (int c = 0; c < kKeys; ++c) {
          const float4 k_part = load4(k_or_v + (j + 8 * c) * kPitch + at);
          SEED_FAST_UNROLL
          for (int r = 0; r < kRows; ++r) part[r][c] = dot(q_part[r], k_part, part[r][c]);
        }
      }
      SEED_FAST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        SEED_FAST_UNROLL
        for (int c = 0; c < kKeys; ++c) score[r][c] += part[r][c];
      }
    }
    // Softmax: mask the scores, update the largest score, and turn scores into weights in shared memory.
    barrier();  // all threads have finished reading the queries, which the weights overwrite
    const int keys = end - first_key < kTileKeys ? end - first_key : kTileKeys;
    float rescale[kRows];
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = first_row + i + 16 * r;
      const int visible = problem.causal && row < problem.lk ? row + 1 : problem.lk;
      float peak = largest[r];
      SEED_FAST_UNROLL
      for (int c = 0; c < kKeys; ++c) {
        score[r][c] = first_key + j + 8 * c < visible ? score[r][c] * sign : -infinity();
        peak = maximum(peak, score[r][c]);
      }
      for (int mask = 1; mask < 8; mask *= 2) peak = maximum(peak, shuffle_xor(peak, mask));
      // If all scores are -inf so far, 0 is subtracted, so that weights are 0 instead of NaN.
      const float shift = peak == -infinity() ? 0 : peak;
      rescale[r] = weight_of(largest[r] - shift, problem.scale);
      largest[r] = peak;
      float part = 0;
      SEED_FAST_UNROLL
      for (int c = 0; c < kKeys; ++c) {
        const float weight = weight_of(score[r][c] - shift, problem.scale);
        part += weight;
        q_or_weights[(i + 16 * r) * kWeightPitch + j + 8 * c] = weight;
      }
      total[r] = multiply_add(total[r], rescale[r], part);
    }
    // Second product: rescale the output sums and add weights times values, 32 columns at a time.
    SEED_FAST_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if (chunk > 0) barrier();
      stage<Type, kDepth>(v + first_key * problem.v.stride_l + chunk * kDepth, problem.v.stride_l,
                          problem.lk - first_key, problem.d - chunk * kDepth, k_or_v);
      barrier();
      float part[kRows][4] = {};
      SEED_FAST_NO_UNROLL
      for (int key = 0; key < keys; key += 4) {
        const float* const values = k_or_v + key * kDepth + 4 * j;
        const float4 value[4] = {load4(values), load4(values + kDepth), load4(values + 2 * kDepth),
                                 load4(values + 3 * kDepth)};
        SEED_FAST_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const float4 weights = load4(q_or_weights + (i + 16 * r) * kWeightPitch + key);
          add_scaled(weights.x, value[0], part[r]);
          add_scaled(weights.y, value[1], part[r]);
          add_scaled(weights.z, value[2], part[r]);
          add_scaled(weights.w, value[3], part[r]);
        }
      }
      SEED_FAST_UNROLL
      for (int r = 0; r < kRows; ++r) {
        SEED_FAST_UNROLL
        for (int c = 0; c < 4; ++c) sums[r][chunk][c] = multiply_add(sums[r][chunk][c], rescale[r], part[r][c]);
      }
    }
  }

  // Divide by the sum of weights and write the output.
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int mask = 1; mask < 8; mask *= 2) total[r] += shuffle_xor(total[r], mask);
    const int row = first_row + i + 16 * r;
    if (row >= problem.lq) continue;
    Element* const out = static_cast<Element*>(problem.out) +
                         ((static_cast<long long>(b) * problem.lq + row) * problem.heads + h) * problem.d;
    SEED_FAST_UNROLL
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int column = chunk * kDepth + 4 * j;
      if (column >= problem.d) continue;
      const float (&sum)[4] = sums[r][chunk];
      Type::store(out + column, float4{sum[0] / total[r], sum[1] / total[r], sum[2] / total[r], sum[3] / total[r]});
    }
  }
}

// The kernels, by how they load (type), queries of a block (tile), largest head width, and blocks per multiprocessor.
#define SEED_FAST_ATTENTION(type, name, tile, width, blocks) \
  SEED_FAST_KERNEL(128, blocks)                              \
  attention_fwd_##name##_w##width##_kernel(const Problem problem) { attend<type, tile, width / kDepth>(problem); }
SEED_FAST_ATTENTION(Aligned, float32_rows32, 32, 32, 5)
SEED_FAST_ATTENTION(Aligned, float32_rows32, 32, 64, 5)
SEED_FAST_ATTENTION(Aligned, float32_rows32, 32, 96, 4)
SEED_FAST_ATTENTION(Aligned, float32_rows32, 32, 128, 4)
SEED_FAST_ATTENTION(Aligned, float32_rows96, 96, 32, 3)
SEED_FAST_ATTENTION(Aligned, float32_rows96, 96, 64, 2)
SEED_FAST_ATTENTION(Aligned, float32_rows96, 96, 96, 2)
SEED_FAST_ATTENTION(Aligned, float32_rows96, 96, 128, 2)
SEED_FAST_ATTENTION(UnalignedFloat, float32_unaligned, 32, 32, 5)
SEED_FAST_ATTENTION(UnalignedFloat, float32_unaligned, 32, 64, 5)
SEED_FAST_ATTENTION(UnalignedFloat, float32_unaligned, 32, 96, 4)
SEED_FAST_ATTENTION(UnalignedFloat, float32_unaligned, 32, 128, 4)
SEED_FAST_ATTENTION(UnalignedHalf, float16_unaligned, 32, 32, 5)
SEED_FAST_ATTENTION(UnalignedHalf, float16_unaligned, 32, 64, 5)
SEED_FAST_ATTENTION(UnalignedHalf, float16_unaligned, 32, 96, 4)
SEED_FAST_ATTENTION(UnalignedHalf, float16_unaligned, 32, 128, 4)
#undef SEED_FAST_ATTENTION

}  // namespace seed_fast::attention

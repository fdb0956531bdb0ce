// Building blocks of the tensor-core kernels of attention (attention_sm70.cu): tiles of binary16 in shared memory, the
// fragments of m8n8k4 that are loaded from them, and the steps of the softmax.
//
// One m8n8k4 multiplies 32 rows by 8 columns: quad pair p computes rows 8 p .. 8 p + 7, and all four quad pairs get the
// same columns. In the first operand a lane holds row `Lane::row`, in the second column `Lane::column`. In the result
// it holds rows `Lane::result_row` and `Lane::result_row` + 2, and in each of them the columns 2 s, 2 s + 1, 2 s + 4
// and 2 s + 5 with s = `Lane::side`.
#pragma once

#include "attention.h"
#include "device.h"

namespace seed_fast::attention {

using device::infinity;
using device::maximum;
using device::power_of_two;
using device::shuffle_xor;
using device::thread_index;

constexpr int kHalves = 8;  // binary16 elements of a 16-byte vector: the k extent of two m8n8k4

// Position of a thread in its warp's matrix products.
struct Lane {
  int warp;
  int row, column, side, result_row;  // see above
  int quarter;                        // lane % 4
  int half;                           // 0 for lanes 0 .. 15, 1 for the others

  SEED_FAST_DEVICE Lane() {
    const int lane = thread_index() % device::kWarp, pair = lane / 4 % 4;
    warp = thread_index() / device::kWarp;
    quarter = lane % 4;
    half = lane / 16;
    column = quarter + 4 * half;
    row = 8 * pair + column;
    side = lane / 2 % 2;
    result_row = 8 * pair + 4 * half + lane % 2;
  }
};

// The row to which register i of a result belongs: 0 for `result_row`, 1 for `result_row` + 2.
SEED_FAST_DEVICE constexpr int result_row_of(int i) { return i / 2 % 2; }
// The column of register i in an 8-column result, for side 0; add 2 for side 1.
SEED_FAST_DEVICE constexpr int result_column_of(int i) { return i / 4 * 4 + i % 2; }

SEED_FAST_DEVICE uint4 zeros() { return uint4{0, 0, 0, 0}; }

// c += a b with k = 8. a: 8 elements of the lane's row; b: 8 elements of its column.
SEED_FAST_DEVICE void multiply(float (&c)[8], const uint4& a, const uint4& b) {
  const unsigned a_low[2] = {a.x, a.y}, b_low[2] = {b.x, b.y}, a_high[2] = {a.z, a.w}, b_high[2] = {b.z, b.w};
  device::mma_m8n8k4(c, a_low, b_low);
  device::mma_m8n8k4(c, a_high, b_high);
}

// A tile of rows in shared memory, or its lower right part from some row and vector on. A lane takes the part where its
// own data begin, so that everything it reads is at an offset known at compile time. kSteps: width in vectors of 8
// elements. The pitch is odd in vectors, so the same column of eight consecutive rows falls into different banks.
template <int kSteps>
struct Tile {
  static constexpr int kPitch = kSteps + 1 - kSteps % 2;
  uint4* vectors;

  SEED_FAST_DEVICE Tile from(int row, int step) const { return {vectors + (row * kPitch + step)}; }
  SEED_FAST_DEVICE uint4& at(int row, int step) const { return vectors[row * kPitch + step]; }
};

// kRows rows of kSteps vectors on their way from global memory, through registers, to a tile. load() starts all loads
// and store() waits for them, so that other work fits in between. A thread copies one column of vectors, in every
// kStride-th row.
template <int kRows, int kSteps, int kThreads>
struct Rows {
  static constexpr int kStride = kThreads / kSteps, kCount = (kRows + kStride - 1) / kStride;
  uint4 loaded[kCount];

  // Loads rows first .. first + kRows - 1 of a head; zeros beyond its `length` rows and d columns.
  SEED_FAST_DEVICE void load(const unsigned short* head, long long stride, int first, int length, int d) {
    const int row = first + thread_index() / kSteps, column = thread_index() % kSteps * kHalves;
    const unsigned short* const from = head + row * stride + column;
    const int end = column < d && thread_index() < kStride * kSteps ? length : 0;
    SEED_FAST_UNROLL
    for (int i = 0; i < kCount; ++i) {
      loaded[i] = row + i * kStride < end ? *reinterpret_cast<const uint4*>(from + i * kStride * stride) : zeros();
    }
  }

  SEED_FAST_DEVICE void store(const Tile<kSteps>& tile) const {
    const int row = thread_index() / kSteps;
    const Tile<kSteps> own = tile.from(row, thread_index() % kSteps);
    if (thread_index() >= kStride * kSteps) return;
    SEED_FAST_UNROLL
    for (int i = 0; i < kCount; ++i) {
      if ((i + 1) * kStride <= kRows || row + i * kStride < kRows) own.at(i * kStride, 0) = loaded[i];
    }
  }
};

// Rounds an 8-column result to binary16 and rearranges it as a first operand: returns the 8 elements of row
// `Lane::row`. Half of them come from lane ^ 2.
SEED_FAST_DEVICE uint4 as_operand(const float (&c)[8], const Lane& lane) {
  const unsigned upper[2] = {device::half_pair(c[0], c[1]), device::half_pair(c[4], c[5])};
  const unsigned lower[2] = {device::half_pair(c[2], c[3]), device::half_pair(c[6], c[7])};
  unsigned mine[2], theirs[2];
  SEED_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    mine[i] = lane.side ? lower[i] : upper[i];
    theirs[i] = shuffle_xor(lane.side ? upper[i] : lower[i], 2);
  }
  return lane.side ? uint4{theirs[0], mine[0], theirs[1], mine[1]} : uint4{mine[0], theirs[0], mine[1], theirs[1]};
}

// A warp's output sums (weights times values) for 32 rows and 16 columns (a "unit" of two vectors) or, with kSingle, 8
// columns: the last ones of a head whose width is an odd number of vectors.
template <bool kSingle>
struct Sums {
  float part[kSingle ? 1 : 2][8] = {};

  // The part of a tile of values that begins with what a lane reads.
  template <int kSteps>
  static SEED_FAST_DEVICE Tile<kSteps> part_of(const Tile<kSteps>& values, const Lane& lane) {
    return values.from(lane.quarter, kSingle ? 0 : lane.half);
  }

  // Adds weights times values of 8 keys. weights: those of the lane's row; values: the lane's part of the tile, whose
  // rows key .. key + 7 are multiplied, in the columns from vector `step` on.
  template <int kSteps>
  SEED_FAST_DEVICE void add(const uint4& weights, const Tile<kSteps>& values, int key, int step, const Lane& lane) {
    const unsigned low[2] = {weights.x, weights.y}, high[2] = {weights.z, weights.w};
    add_step(low, values.at(key, step), lane);
    add_step(high, values.at(key + 4, step), lane);
  }

  // Multiplies row `result_row` by `upper`, and the row two below it by `lower`.
  SEED_FAST_DEVICE void scale(float upper, float lower) {
    SEED_FAST_UNROLL
    for (int p = 0; p < (kSingle ? 1 : 2); ++p) {
      SEED_FAST_UNROLL
      for (int i = 0; i < 8; ++i) part[p][i] *= result_row_of(i) ? lower : upper;
    }
  }

  // Writes the sums, rounded to binary16, to the columns from vector `step` on of `row`, the output row of the lane,
  // unless it is null. All lanes must call it, since they exchange data.
  SEED_FAST_DEVICE void write(unsigned short* row, int step, int d, const Lane& lane) const {
    const uint4 first = as_operand(part[0], lane);
    uint4* const out = reinterpret_cast<uint4*>(row) + step;
    if constexpr (kSingle) {
      if (row && step * kHalves < d) out[0] = first;
    } else {
      const uint4 second = as_operand(part[1], lane);
      if (row && step * kHalves < d) out[0] = uint4{first.x, first.y, second.x, second.y};
      if (row && (step + 1) * kHalves < d) out[1] = uint4{first.z, first.w, second.z, second.w};
    }
  }

 private:
  // Adds four keys. Each lane has loaded a vector of its key: lanes 0 .. 15 columns 0 .. 7, the others columns 8 .. 15.
  // The first halves of these vectors (columns 0 .. 3 and 8 .. 11) are the operand of one product, the second halves
  // that of another; write() restores the order. With kSingle all lanes hold columns 0 .. 7 and use one half of them.
  SEED_FAST_DEVICE void add_step(const unsigned (&weights)[2], const uint4& value, const Lane& lane) {
    const unsigned low[2] = {value.x, value.y}, high[2] = {value.z, value.w};
    if constexpr (kSingle) {
      const unsigned own[2] = {lane.half ? high[0] : low[0], lane.half ? high[1] : low[1]};
      device::mma_m8n8k4_row_row(part[0], weights, own);
    } else {
      device::mma_m8n8k4_row_row(part[0], weights, low);
      device::mma_m8n8k4_row_row(part[1], weights, high);
    }
  }
};

// The (batch, head) pair that a block computes: addresses of its first rows, and the block's first query.
struct Head {
  const unsigned short *q, *k, *v;
  unsigned short* out;
  long long out_stride;  // from row to row
  int first_row;

  SEED_FAST_DEVICE Head(const Problem& problem, int block_rows) {
    const unsigned block = static_cast<unsigned>(device::block_index_x());
    const unsigned head = block / problem.query_blocks, b = head / problem.heads, h = head % problem.heads;
    first_row = static_cast<int>(block % problem.query_blocks) * block_rows;
    q = start(problem.q, b, h);
    k = start(problem.k, b, h);
    v = start(problem.v, b, h);
    out_stride = problem.heads * problem.d;
    out =
        static_cast<unsigned short*>(problem.out) + static_cast<long long>(b) * problem.lq * out_stride + h * problem.d;
  }

  static SEED_FAST_DEVICE const unsigned short* start(const Tensor& x, unsigned b, unsigned h) {
    return static_cast<const unsigned short*>(x.data) + b * x.stride_b + h * x.stride_h;
  }
};

// How many keys, from the first one on, the query `row` attends to.
SEED_FAST_DEVICE int visible_keys(const Problem& problem, int row) {
  return problem.causal && row < problem.lk ? row + 1 : problem.lk;
}

// Scales a result with the scores of 8 keys, from first_key on, and sets those of masked keys to -inf. visible: visible
// keys of the lane's two rows. Updates `largest`, the largest score of each.
SEED_FAST_DEVICE void scale_and_mask(float (&score)[8], float scale, int first_key, const int (&visible)[2],
                                     const Lane& lane, float (&largest)[2]) {
  SEED_FAST_UNROLL
  for (int i = 0; i < 8; ++i) {
    const int key = first_key + result_column_of(i) + 2 * lane.side;
    score[i] = key < visible[result_row_of(i)] ? score[i] * scale : -infinity();
    largest[result_row_of(i)] = maximum(largest[result_row_of(i)], score[i]);
  }
}

// What is subtracted from a row's scores: the largest one, or 0 if all are -inf, so that weights are 0 instead of NaN.
SEED_FAST_DEVICE float shift_of(float largest) { return largest == -infinity() ? 0 : largest; }

// Replaces scores by softmax weights 2^(score - shift) and adds these to the totals of the two rows.
SEED_FAST_DEVICE void to_weights(float (&score)[8], const float (&shift)[2], float (&total)[2]) {
  SEED_FAST_UNROLL
  for (int i = 0; i < 8; ++i) {
    score[i] = power_of_two(score[i] - shift[result_row_of(i)]);
    total[result_row_of(i)] += score[i];
  }
}

}  // namespace seed_fast::attention

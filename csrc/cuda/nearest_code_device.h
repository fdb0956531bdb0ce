// Device code that all kernels of nearest_code share: rows of z, a packed codebook, error bounds, partial results. The
// terms are explained in nearest_code.h.
//
// With a centre c, z' = z - c and e' = e - c, a screen computes the scores s_k = z'.e'_k - ||e'_k||^2 / 2, whose argmax
// is the argmin of the distance. Because of the centre its error is proportional to the spread of the codebook, not to
// its distance from zero.
#pragma once

#include "device.h"
#include "nearest_code.h"

namespace seed_fast::nearest_code {

using namespace seed_fast::device;

constexpr double kFloat32Max = 0x1.fffffep127;

struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

SEED_FAST_DEVICE float to_float(float value) { return value; }
SEED_FAST_DEVICE float to_float(Half value) { return float_from_half(value.bits); }
SEED_FAST_DEVICE float to_float(BFloat16 value) { return float_from_bits(static_cast<unsigned>(value.bits) << 16); }

// Element i of an array of the dtype.
SEED_FAST_DEVICE float load(const void* values, int dtype, long long i) {
  if (dtype == kFloat32) return static_cast<const float*>(values)[i];
  if (dtype == kFloat16) return to_float(static_cast<const Half*>(values)[i]);
  return to_float(static_cast<const BFloat16*>(values)[i]);
}

// z [N, D] of the dtype; rows `stride` elements apart, the last axis contiguous.
struct Rows {
  const void* values;
  int dtype;
  long long n, stride;
};

// One row of z.
struct Row {
  const void* values;
  int dtype;
  long long offset;  // of its first element

  SEED_FAST_DEVICE Row(const Rows& z, long long row) : values(z.values), dtype(z.dtype), offset(row * z.stride) {}
  SEED_FAST_DEVICE float operator[](int i) const { return load(values, dtype, offset + i); }
};

// The arrays of a packed codebook, see PackedLayout.
struct Codes {
  const PackedHeader* header;
  const double* norms64;
  const float* start;
  const Group* groups;
  const float *center, *tiles;
  const uint4* half_tiles;
  int k, d;

  SEED_FAST_DEVICE Codes(const unsigned char* packed, int k, int d) : k(k), d(d) {
    const PackedLayout layout(k, d);
    header = reinterpret_cast<const PackedHeader*>(packed);
    norms64 = reinterpret_cast<const double*>(packed + layout.norms64);
    start = reinterpret_cast<const float*>(packed + layout.start);
    groups = reinterpret_cast<const Group*>(packed + layout.groups);
    center = reinterpret_cast<const float*>(packed + layout.center);
    tiles = reinterpret_cast<const float*>(packed + layout.tiles);
    half_tiles = reinterpret_cast<const uint4*>(packed + layout.half_tiles);
  }
  SEED_FAST_DEVICE const float* tile(int t) const {
    return tiles + static_cast<long long>(t) * padded_dim(d) * kTileCodes;
  }
  // Element i of the code is column(code)[i * 128].
  SEED_FAST_DEVICE const float* column(int code) const { return tile(code / kTileCodes) + code % kTileCodes; }
};

// Bound on the error |s - exact s| of the score of a code whose group has norm bound E and S = E^2 / 2:
//   products ||z'|| E + squares S + tiny (1 + ||z'|| + E)
//
// float32: with u = 2^-24 and n = D + 8 roundings (of z', e', start, products, sums, and of the bound itself),
// `products` and `squares` are n u / (1 - n u). `tiny` covers D + 8 underflows, assuming that subnormals are flushed to
// zero.
//
// binary16: rounding z' and e' adds 2 (2^-11 + 2^-28) + (2^-11 + 2^-28)^2 to `products`, and the truncation of sums in
// the tensor core adds 6 * 2^-23 for every four dimensions. Rows and groups are multiplied by powers of two to use the
// range of binary16, but by at most 2^63 (Scale), so elements have an absolute error of up to 2^-88; `tiny` covers it.
struct ScreenError {
  float products, squares, tiny;

  SEED_FAST_DEVICE ScreenError(int d, bool half) {
    const float n = static_cast<float>(d + 8) * 0x1p-24f;
    squares = 1.0001f * n / (1 - n);
    products = squares;
    tiny = static_cast<float>(d + 8) * 0x1p-125f;
    if (half) {
      products += 1.0001f * (0x1p-10f + 0x1p-20f + static_cast<float>(padded_dim(d)) * 0x1p-22f);
      tiny = static_cast<float>(d + 8) * 0x1p-86f;
    }
  }
  // The part of the bound that depends on the group alone. The term tiny (1 + ||z'||) is in no bound of a Partial;
  // slack() accounts for it when bounds are compared.
  SEED_FAST_DEVICE float of_group(const Group& group) const {
    return multiply_add(squares, group.square, tiny * group.norm);
  }
  // By how much the difference between an upper and a lower bound of a Partial may be too small; spread: ||z'||.
  SEED_FAST_DEVICE double slack(double spread) const { return 2 * static_cast<double>(tiny) * (1 + spread); }
};

// A power of two that brings the largest magnitude into [2^13, 2^14), near the upper end of binary16, and its inverse.
// Magnitudes below 2^-50 or above 2^64 are scaled like these limits.
struct Scale {
  float up, down;

  SEED_FAST_DEVICE explicit Scale(float largest) {
    const int exponent = static_cast<int>(float_bits(largest) >> 23 & 0xff) - 127;
    const int kept = exponent < -50 ? -50 : exponent > 64 ? 64 : exponent;
    up = float_from_bits(static_cast<unsigned>(127 + 13 - kept) << 23);
    down = float_from_bits(static_cast<unsigned>(127 - 13 + kept) << 23);
  }
};

// The magnitude of a row around the centre.
struct RowSize {
  Scale scale{1};    // for the elements of z'
  float spread = 0;  // ||z'||, rounded up
};
// Measures kRows rows at once, so that their loads and shuffles overlap. All 32 lanes of a warp call it, divide the
// dimensions among themselves, and get the same `sizes`. row_at(i) returns row i; rows from `count` on get spread 0.
template <int kRows, class RowAt>
SEED_FAST_DEVICE void measure(RowAt row_at, int count, const Codes& codes, int lane, RowSize (&sizes)[kRows]) {
  // The largest magnitude of z' gives the scale.
  float largest[kRows], square[kRows];
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) largest[r] = square[r] = 0;
  for (int i = lane; i < codes.d; i += kWarp) {
    const float center = codes.center[i];
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float value = r < count ? row_at(r)[i] - center : 0;
      largest[r] = maximum(largest[r], value < 0 ? -value : value);
    }
  }
  for (int mask = 1; mask < kWarp; mask *= 2) {
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) largest[r] = maximum(largest[r], shuffle_xor(largest[r], mask));
  }
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) sizes[r].scale = Scale(largest[r]);
  // The norm is computed from scaled elements, so that squares neither overflow nor underflow, and rounded up.
  for (int i = lane; i < codes.d; i += kWarp) {
    const float center = codes.center[i];
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const float value = r < count ? (row_at(r)[i] - center) * sizes[r].scale.up : 0;
      square[r] = multiply_add(value, value, square[r]);
    }
  }
  for (int mask = 1; mask < kWarp; mask *= 2) {
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) square[r] += shuffle_xor(square[r], mask);
  }
  const float rounding = 1 + static_cast<float>(codes.d + 8) * 0x1p-23f;
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) sizes[r].spread = square_root(square[r]) * sizes[r].scale.down * rounding;
}
SEED_FAST_DEVICE RowSize measure(const Row& z, const Codes& codes, int lane) {
  RowSize size[1];
  measure([&](int) { return z; }, 1, codes, lane, size);
  return size[0];
}
constexpr int kMeasured = 8;  // rows that a warp of a screen measures at once

// True if a group comes before another in a Partial: the larger upper bound first; of equal bounds, the lower index.
// This is a strict total order, so a Partial is a function of the set of groups that were added to it: results of
// lanes, warps and shares may be merged in any order, and all lanes that merge the same groups hold the same result.
SEED_FAST_DEVICE bool stands_before(float upper, int group, float other_upper, int other_group) {
  return upper > other_upper || (upper == other_upper && group < other_group);
}

// The partial result of no groups.
SEED_FAST_DEVICE Partial nothing() {
  const float none = -infinity();
  return {none, {none, none, none}, {kNoGroup, kNoGroup}};
}

// Adds a group. `first` and `second`: whether it comes before the first and the second group that are kept.
SEED_FAST_DEVICE void insert(Partial& partial, float upper, int group, bool first, bool second) {
  partial.upper[2] = second ? partial.upper[1] : maximum(partial.upper[2], upper);
  partial.upper[1] = first ? partial.upper[0] : second ? upper : partial.upper[1];
  partial.group[1] = first ? partial.group[0] : second ? group : partial.group[1];
  partial.upper[0] = first ? upper : partial.upper[0];
  partial.group[0] = first ? group : partial.group[0];
}

// Adds a group, given the largest of its scores and their error bound. Its index must be higher than those of all
// groups added before, so that of equal bounds the earlier one stays first.
SEED_FAST_DEVICE void keep_next(Partial& partial, float score, float bound, int group) {
  const float upper = score + bound;
  partial.lower = maximum(partial.lower, score - bound);
  insert(partial, upper, group, upper > partial.upper[0], upper > partial.upper[1]);
}

// Adds all groups of `other`, which must have none in common with `partial`.
SEED_FAST_DEVICE void merge(Partial& partial, const Partial& other) {
  partial.lower = maximum(partial.lower, other.lower);
  SEED_FAST_UNROLL
  for (int i = 0; i < 2; ++i) {
    const float upper = other.upper[i];
    const int group = other.group[i];
    insert(partial, upper, group, stands_before(upper, group, partial.upper[0], partial.group[0]),
           stands_before(upper, group, partial.upper[1], partial.group[1]));
  }
  partial.upper[2] = maximum(partial.upper[2], other.upper[2]);
}

// The partial result that lane (own lane ^ mask) holds.
SEED_FAST_DEVICE Partial shuffle_partial(const Partial& partial, int mask) {
  Partial other;
  other.lower = shuffle_xor(partial.lower, mask);
  for (int i = 0; i < 3; ++i) other.upper[i] = shuffle_xor(partial.upper[i], mask);
  for (int i = 0; i < 2; ++i) other.group[i] = shuffle_xor(partial.group[i], mask);
  return other;
}

}  // namespace seed_fast::nearest_code

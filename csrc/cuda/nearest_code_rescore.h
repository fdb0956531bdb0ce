// Device code of nearest_code that makes a float32 screen exact: a row that the screen leaves open is scanned again by
// one warp. Codes that the screen's error bound can't exclude get a float64 score; two scores that float64 can't tell
// apart are compared without rounding.
#pragma once

#include "device.h"
#include "nearest_code.h"

namespace seed_fast::nearest_code {

using namespace seed_fast::device;

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

// One row of z.
struct Row {
  const void* values;
  int dtype;
  long long offset;  // of its first element

  SEED_FAST_DEVICE float operator[](int i) const { return load(values, dtype, offset + i); }
};

// The arrays of a packed codebook.
struct Codes {
  const PackedHeader* header;
  const double* norms64;  // [K padded]
  const float* norms32;   // [K padded]
  const float* tiles;     // [K padded / 128, D padded, 128]
  int k, d;

  SEED_FAST_DEVICE Codes(const unsigned char* packed, int k, int d) : k(k), d(d) {
    const PackedLayout layout(k, d);
    header = reinterpret_cast<const PackedHeader*>(packed);
    norms64 = reinterpret_cast<const double*>(packed + layout.norms64);
    norms32 = reinterpret_cast<const float*>(packed + layout.norms32);
    tiles = reinterpret_cast<const float*>(packed + layout.tiles);
  }
  SEED_FAST_DEVICE const float* tile(int t) const {
    return tiles + static_cast<long long>(t) * padded_dim(d) * kTileCodes;
  }
  // Element i of the code is column(code)[i * 128].
  SEED_FAST_DEVICE const float* column(int code) const { return tile(code / kTileCodes) + code % kTileCodes; }
};

// A sum of products of float32 values as a fixed-point integer: limb i weighs 2^(32 i - 298). Each limb is wide enough
// to collect its share of 2^29 products, so carries wait until sign(). Integers, because no order of additions and no
// contraction by a compiler can change them.
struct ExactSum {
  static constexpr int kLimbs = 18;  // the largest product ends below bit 48 + 2 * 253 + 1
  long long limbs[kLimbs];

  SEED_FAST_DEVICE ExactSum() {
    for (int i = 0; i < kLimbs; ++i) limbs[i] = 0;
  }

  // Adds a * b * 2^doubled, or subtracts it. Both are finite.
  SEED_FAST_DEVICE void add(float a, float b, int doubled, bool subtract) {
    const unsigned x = float_bits(a), y = float_bits(b);
    const int x_exponent = static_cast<int>(x >> 23 & 0xff), y_exponent = static_cast<int>(y >> 23 & 0xff);
    const unsigned long long x_significand = (x & 0x7fffff) | (x_exponent ? 0x800000 : 0);
    const unsigned long long y_significand = (y & 0x7fffff) | (y_exponent ? 0x800000 : 0);
    const int shift = (x_exponent ? x_exponent - 1 : 0) + (y_exponent ? y_exponent - 1 : 0) + doubled;
    const int limb = shift / 32, bit = shift % 32;
    const unsigned long long product = x_significand * y_significand;  // 48 bits
    const unsigned long long low = product << bit, high = bit ? product >> (64 - bit) : 0;
    const long long sign = ((x ^ y) >> 31 != 0) != subtract ? -1 : 1;
    limbs[limb] += sign * static_cast<long long>(low & 0xffffffffu);
    limbs[limb + 1] += sign * static_cast<long long>(low >> 32);
    limbs[limb + 2] += sign * static_cast<long long>(high);
  }

  // -1, 0 or 1.
  SEED_FAST_DEVICE int sign() const {
    long long carry = 0;
    bool nonzero = false;
    for (int i = 0; i < kLimbs; ++i) {
      const long long sum = limbs[i] + carry;
      nonzero |= (sum & 0xffffffffll) != 0;
      carry = sum >> 32;
    }
    return carry < 0 ? -1 : (carry > 0 || nonzero);
  }
};

// Sign of score(a) - score(b): the sum over dimensions of a^2 - b^2 - 2 z a + 2 z b.
SEED_FAST_DEVICE_NOINLINE int compare_exactly(const Row& z, const Codes& codes, int a, int b) {
  const float *a_column = codes.column(a), *b_column = codes.column(b);
  ExactSum difference;
  for (int i = 0; i < codes.d; ++i) {
    const float a_value = a_column[i * kTileCodes], b_value = b_column[i * kTileCodes];
    if (a_value == b_value) continue;  // everywhere in duplicated codes, whose ties are cheap for it
    const float z_value = z[i];
    difference.add(a_value, a_value, 0, false);
    difference.add(b_value, b_value, 0, true);
    difference.add(z_value, a_value, 1, true);
    difference.add(z_value, b_value, 1, false);
  }
  return difference.sign();
}

struct Candidate {
  double score, second;  // of the best code, and of the best of all others
  int index;             // -1: none yet
};

// Whether a comes before b: by exact score, then by index. `error` bounds the error of a float64 score. A strict total
// order, so that candidates merge to one result in whatever order lanes and tiles meet.
SEED_FAST_DEVICE bool precedes(const Row& z, const Codes& codes, double error, const Candidate& a, const Candidate& b) {
  if (a.index < 0 || b.index < 0) return a.index >= 0;
  const double gap = a.score - b.score;
  if (gap < -2 * error) return true;
  if (gap > 2 * error) return false;
  const int order = compare_exactly(z, codes, a.index, b.index);
  return order < 0 || (order == 0 && a.index < b.index);
}

SEED_FAST_DEVICE Candidate merge(const Row& z, const Codes& codes, double error, const Candidate& a,
                                 const Candidate& b) {
  const bool first = precedes(z, codes, error, a, b);
  const Candidate &winner = first ? a : b, &loser = first ? b : a;
  Candidate merged = winner;
  if (loser.second < merged.second) merged.second = loser.second;
  if (loser.score < merged.second) merged.second = loser.score;
  return merged;
}

// The best of all codes whose float32 score doesn't exceed the threshold; z has elements of type T. The 32 lanes of a
// warp share the work and all return the result.
template <class T>
SEED_FAST_DEVICE Candidate rescore(const Row& z, const Codes& codes, float threshold, double error, int lane) {
  constexpr int kPerLane = kTileCodes / kWarp;  // codes of a lane are 32 apart, so that a warp reads whole lines
  const T* const values = static_cast<const T*>(z.values) + z.offset;
  Candidate found{infinity(), infinity(), -1};
  for (int tile = 0; tile < code_tiles(codes.k); ++tile) {
    const int code = tile * kTileCodes + lane;
    const float* const column = codes.column(code);
    float score[kPerLane];
    SEED_FAST_UNROLL
    for (int c = 0; c < kPerLane; ++c) score[c] = codes.norms32[code + c * kWarp];
    for (int i = 0; i < codes.d; ++i) {
      const float z_value = -2 * to_float(values[i]);
      SEED_FAST_UNROLL
      for (int c = 0; c < kPerLane; ++c) {
        score[c] = multiply_add(z_value, column[i * kTileCodes + c * kWarp], score[c]);
      }
    }
    bool open = false;
    SEED_FAST_UNROLL
    for (int c = 0; c < kPerLane; ++c) open |= score[c] <= threshold;
    if (!open) continue;

    double score64[kPerLane];
    SEED_FAST_UNROLL
    for (int c = 0; c < kPerLane; ++c) score64[c] = codes.norms64[code + c * kWarp];
    for (int i = 0; i < codes.d; ++i) {
      const double z_value = -2 * static_cast<double>(to_float(values[i]));
      SEED_FAST_UNROLL
      for (int c = 0; c < kPerLane; ++c) {
        const double value = static_cast<double>(column[i * kTileCodes + c * kWarp]);
        score64[c] = multiply_add(z_value, value, score64[c]);
      }
    }
    SEED_FAST_UNROLL
    for (int c = 0; c < kPerLane; ++c) {
      if (score[c] <= threshold) {  // may hold for the filling of the last tile, whose float64 score is +inf
        found = merge(z, codes, error, found, Candidate{score64[c], infinity(), code + c * kWarp});
      }
    }
  }
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const Candidate other{shuffle_xor(found.score, mask), shuffle_xor(found.second, mask),
                          shuffle_xor(found.index, mask)};
    found = merge(z, codes, error, found, other);
  }
  return found;
}

}  // namespace seed_fast::nearest_code

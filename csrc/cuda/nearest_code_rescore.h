// Device code of nearest_code that turns the result of a screen into an exact id. The codes that the screen left are
// scored again, first in float32 with an error bound, then in float64. Two float64 scores whose difference is within
// their error are compared exactly, as integers.
#pragma once

#include "exact_sum.h"
#include "nearest_code_device.h"

namespace seed_fast::nearest_code {

// score(a) - score(b) of two codes, exactly: the sum over dimensions of a^2 - b^2 - 2 z a + 2 z b.
SEED_FAST_DEVICE ExactSum exact_difference(const Row& z, const Codes& codes, int a, int b) {
  const float *a_column = codes.column(a), *b_column = codes.column(b);
  ExactSum difference;
  for (int i = 0; i < codes.d; ++i) {
    const unsigned a_bits = float_bits(a_column[i * kTileCodes]), b_bits = float_bits(b_column[i * kTileCodes]);
    // Equal elements contribute 0. Skipping them makes ties between duplicated codes cheap.
    if (a_bits != b_bits) difference.add_difference(float_bits(z[i]), a_bits, b_bits);
  }
  return difference;
}

// The sign of exact_difference, and its value, which must not be negative. They are called rarely, so they are not
// inlined.
SEED_FAST_DEVICE_NOINLINE int compare_exactly(const Row& z, const Codes& codes, int a, int b) {
  return exact_difference(z, codes, a, b).sign();
}
SEED_FAST_DEVICE_NOINLINE double exact_gap(const Row& z, const Codes& codes, int a, int b) {
  return exact_difference(z, codes, a, b).value();
}

// A code with its float64 score ||e||^2 - 2 z.e.
struct Scored {
  double score;
  int index;  // of the code; -1: no code
};

// The nearest of some codes and, with kSecond, the second nearest.
template <bool kSecond>
struct Candidates {
  Scored best, second;
};

SEED_FAST_DEVICE Scored no_code() { return {static_cast<double>(infinity()), -1}; }

// True if code a is nearer than b: by exact score, then by index. `error` bounds the error of a float64 score. This is
// a strict total order of distinct codes, so merging gives the same result in any order of lanes and tiles.
SEED_FAST_DEVICE bool precedes(const Row& z, const Codes& codes, double error, const Scored& a, const Scored& b) {
  if (a.index < 0 || b.index < 0) return a.index >= 0;
  const double gap = a.score - b.score;
  if (gap < -2 * error) return true;
  if (gap > 2 * error) return false;
  const int order = compare_exactly(z, codes, a.index, b.index);
  return order < 0 || (order == 0 && a.index < b.index);
}

// The candidates of the codes of a and of b, which must have no code in common.
template <bool kSecond>
SEED_FAST_DEVICE Candidates<kSecond> merge(const Row& z, const Codes& codes, double error, const Candidates<kSecond>& a,
                                           const Candidates<kSecond>& b) {
  const bool first = precedes(z, codes, error, a.best, b.best);
  Candidates<kSecond> merged{first ? a.best : b.best, no_code()};
  if (kSecond) {
    const Scored loser = first ? b.best : a.best, follower = first ? a.second : b.second;
    merged.second = precedes(z, codes, error, follower, loser) ? follower : loser;
  }
  return merged;
}

// One row of z with everything needed to decide its id. The functions that take one are called by all 32 lanes of a
// warp, unless they score a single code.
struct Subject {
  Row z;
  const Codes& codes;
  int lane;
  double norm;     // ||z||^2
  double spread;   // ||z'||, rounded up
  double error64;  // bound on the error of a float64 score ||e||^2 - 2 z.e
  bool bounded;    // float32 scores can't overflow, so the bounds of the screens hold

  SEED_FAST_DEVICE Subject(const Rows& rows, long long row, const Codes& codes, int lane)
      : z(rows, row), codes(codes), lane(lane), norm(0) {
    for (int i = lane; i < codes.d; i += kWarp) {
      const double value = static_cast<double>(z[i]);
      norm = multiply_add(value, value, norm);
    }
    for (int mask = 1; mask < kWarp; mask *= 2) norm += shuffle_xor(norm, mask);
    spread = static_cast<double>(measure(z, codes, lane).spread);
    const double code_norm = static_cast<double>(float_from_bits(~codes.header->max_norm_bits));
    const double code_spread = static_cast<double>(float_from_bits(~codes.header->max_spread_bits));
    error64 = (2 * codes.d + 4) * 0x1p-53 * (code_norm + 2 * square_root(norm * code_norm));
    bounded = code_spread * code_spread + spread * code_spread < 0x1p126;
  }

  // True if a nearest code is defined: neither NaN nor a norm that is infinite in float32, in the row or the codebook.
  SEED_FAST_DEVICE bool valid() const { return norm <= kFloat32Max && codes.header->bad_norm == ~0u; }
};

// The score z'.e' - ||e'||^2 / 2 of a code in float32, as in the float32 screen.
SEED_FAST_DEVICE float score32(const Subject& row, int code) {
  const float* const column = row.codes.column(code);
  float score = row.codes.start[code];
  for (int i = 0; i < row.codes.d; ++i) {
    const float center = row.codes.center[i];
    score = multiply_add(row.z[i] - center, column[i * kTileCodes] - center, score);
  }
  return score;
}

// The score ||e||^2 - 2 z.e of a code in float64; the smallest is the nearest.
SEED_FAST_DEVICE double score64(const Subject& row, int code) {
  const float* const column = row.codes.column(code);
  double score = row.codes.norms64[code];
  for (int i = 0; i < row.codes.d; ++i) {
    const double z_value = -2 * static_cast<double>(row.z[i]);
    score = multiply_add(z_value, static_cast<double>(column[i * kTileCodes]), score);
  }
  return score;
}

// The error bound of the float32 scores of a group.
SEED_FAST_DEVICE float bound32(const Subject& row, int group) {
  const ScreenError error(row.codes.d, false);
  const Group found = row.codes.groups[group];
  return multiply_add(error.products * static_cast<float>(row.spread), found.norm, error.of_group(found));
}

SEED_FAST_DEVICE Scored shuffle_scored(const Scored& code, int mask) {
  return {shuffle_xor(code.score, mask), shuffle_xor(code.index, mask)};
}

// The candidates of all lanes, merged; the same in all lanes.
template <bool kSecond>
SEED_FAST_DEVICE Candidates<kSecond> first_of_lanes(const Subject& row, Candidates<kSecond> found) {
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const Candidates<kSecond> other{shuffle_scored(found.best, mask),
                                    kSecond ? shuffle_scored(found.second, mask) : no_code()};
    found = merge(row.z, row.codes, row.error64, found, other);
  }
  return found;
}

// Returns the nearest code if the screen left at most two groups, otherwise -1; the same in all lanes. `found` and
// `error`: the row's partial result and the error of the screen.
SEED_FAST_DEVICE int decide(const Subject& row, const Partial& found, const ScreenError& error) {
  // Groups whose upper bound is below the threshold can't hold the nearest code. Lanes 0 .. 7 take the codes of the
  // first group, lanes 8 .. 15 those of the second if it is not excluded.
  const double threshold = static_cast<double>(found.lower) - error.slack(row.spread);
  if (!row.bounded || !(static_cast<double>(found.upper[2]) < threshold)) return -1;
  const bool second = static_cast<double>(found.upper[1]) >= threshold;
  const bool mine = row.lane < kGroup || (row.lane < 2 * kGroup && second);
  const int group = found.group[row.lane < kGroup ? 0 : 1];
  const int code = mine ? code_of(group, row.lane % kGroup) : -1;

  // Float32: `open` codes are those whose upper bound reaches the best lower bound. If only one is open, it is the
  // nearest.
  const float score = mine ? score32(row, code) : -infinity(), bound = mine ? bound32(row, group) : 0;
  float lower = score - bound;
  for (int mask = 1; mask < kWarp; mask *= 2) lower = maximum(lower, shuffle_xor(lower, mask));
  const double slack = ScreenError(row.codes.d, false).slack(row.spread);
  const bool open = mine && static_cast<double>(score + bound) >= static_cast<double>(lower) - slack;
  int count = open, only = open ? code : -1;
  for (int mask = 1; mask < kWarp; mask *= 2) {
    count += shuffle_xor(count, mask);
    const int other = shuffle_xor(only, mask);
    only = other > only ? other : only;
  }
  if (count == 1) return only;
  // Float64 and, within its error, exact comparison.
  const Candidates<false> mine_only{open ? Scored{score64(row, code), code} : no_code(), no_code()};
  return first_of_lanes(row, mine_only).best.index;
}

// The candidates of all codes whose exact score can be at least `lower`, judged by their float32 score and its bound.
// With lower = -infinity all codes are compared, including duplicates that the screens leave out. Neighbouring lanes
// take neighbouring codes, so that the reads of a warp are contiguous.
template <bool kSecond>
SEED_FAST_DEVICE Candidates<kSecond> scan(const Subject& row, double lower) {
  const bool all = lower == -static_cast<double>(infinity());
  const double threshold = lower - ScreenError(row.codes.d, false).slack(row.spread);
  Candidates<kSecond> found{no_code(), no_code()};
  for (int code = row.lane; code < code_tiles(row.codes.k) * kTileCodes; code += kWarp) {
    if (!all && !(static_cast<double>(score32(row, code) + bound32(row, group_of(code))) >= threshold)) continue;
    if (code < row.codes.k) {
      const Candidates<kSecond> next{{score64(row, code), code}, no_code()};
      found = merge(row.z, row.codes, row.error64, found, next);
    }
  }
  return first_of_lanes(row, found);
}

}  // namespace seed_fast::nearest_code

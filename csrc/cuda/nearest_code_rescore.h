// Device code of nearest_code that makes a screen exact. What the screen leaves open is scored again, in float32 with
// its own bound, then in float64; two scores that float64 can't tell apart are compared without rounding.
#pragma once

#include "exact_sum.h"
#include "nearest_code_device.h"

namespace seed_fast::nearest_code {

// score(a) - score(b), the sum over dimensions of a^2 - b^2 - 2 z a + 2 z b.
SEED_FAST_DEVICE ExactSum exact_difference(const Row& z, const Codes& codes, int a, int b) {
  const float *a_column = codes.column(a), *b_column = codes.column(b);
  ExactSum difference;
  for (int i = 0; i < codes.d; ++i) {
    const unsigned a_bits = float_bits(a_column[i * kTileCodes]), b_bits = float_bits(b_column[i * kTileCodes]);
    // Equal everywhere in duplicated codes, whose ties are cheap for it.
    if (a_bits != b_bits) difference.add_difference(float_bits(z[i]), a_bits, b_bits);
  }
  return difference;
}

// The sign of exact_difference, and its value where it isn't negative.
SEED_FAST_DEVICE_NOINLINE int compare_exactly(const Row& z, const Codes& codes, int a, int b) {
  return exact_difference(z, codes, a, b).sign();
}
SEED_FAST_DEVICE_NOINLINE double exact_gap(const Row& z, const Codes& codes, int a, int b) {
  return exact_difference(z, codes, a, b).value();
}

struct Scored {
  double score;  // float64
  int index;     // of the code; -1: none
};

// The first of some codes and, with kSecond, the second one.
template <bool kSecond>
struct Candidates {
  Scored best, second;
};

SEED_FAST_DEVICE Scored no_code() { return {static_cast<double>(infinity()), -1}; }

// True if a comes before b: by exact score, then by index. `error` bounds the error of a float64 score. The order is
// strict and total for distinct codes, so candidates merge to one result in whatever order lanes and tiles meet.
SEED_FAST_DEVICE bool precedes(const Row& z, const Codes& codes, double error, const Scored& a, const Scored& b) {
  if (a.index < 0 || b.index < 0) return a.index >= 0;
  const double gap = a.score - b.score;
  if (gap < -2 * error) return true;
  if (gap > 2 * error) return false;
  const int order = compare_exactly(z, codes, a.index, b.index);
  return order < 0 || (order == 0 && a.index < b.index);
}

// `a` and `b` have no code in common.
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

// One row of z with what its decision needs. All functions are called by the 32 lanes of a warp and return the same to
// all of them.
struct Subject {
  Row z;
  const Codes& codes;
  int lane;
  double norm, spread;  // ||z||^2; ||z'||
  double error64;       // of a float64 score ||e||^2 - 2 z.e
  bool bounded;         // true: float32 scores can't overflow, so that bounds hold

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

  // True if there is a nearest code: no NaN, and norms that are finite in float32.
  SEED_FAST_DEVICE bool valid() const { return norm <= kFloat32Max && codes.header->bad_norm == ~0u; }
};

// The float32 score of a code.
SEED_FAST_DEVICE float score32(const Subject& row, int code) {
  const float* const column = row.codes.column(code);
  float score = row.codes.start[code];
  for (int i = 0; i < row.codes.d; ++i) {
    const float center = row.codes.center[i];
    score = multiply_add(row.z[i] - center, column[i * kTileCodes] - center, score);
  }
  return score;
}

SEED_FAST_DEVICE double score64(const Subject& row, int code) {
  const float* const column = row.codes.column(code);
  double score = row.codes.norms64[code];
  for (int i = 0; i < row.codes.d; ++i) {
    const double z_value = -2 * static_cast<double>(row.z[i]);
    score = multiply_add(z_value, static_cast<double>(column[i * kTileCodes]), score);
  }
  return score;
}

// Error bound of the float32 scores of a group.
SEED_FAST_DEVICE float bound32(const Subject& row, int group) {
  const ScreenError error(row.codes.d, false);
  const Group found = row.codes.groups[group];
  return multiply_add(error.products * static_cast<float>(row.spread), found.norm, error.of_group(found));
}

SEED_FAST_DEVICE Scored shuffle_scored(const Scored& code, int mask) {
  return {shuffle_xor(code.score, mask), shuffle_xor(code.index, mask)};
}

// The first of the lanes' candidates.
template <bool kSecond>
SEED_FAST_DEVICE Candidates<kSecond> first_of_lanes(const Subject& row, Candidates<kSecond> found) {
  for (int mask = 1; mask < kWarp; mask *= 2) {
    const Candidates<kSecond> other{shuffle_scored(found.best, mask),
                                    kSecond ? shuffle_scored(found.second, mask) : no_code()};
    found = merge(row.z, row.codes, row.error64, found, other);
  }
  return found;
}

// The nearest code, where the screen left no more than two groups; else -1. `error` is the screen's.
SEED_FAST_DEVICE int decide(const Subject& row, const Partial& found, const ScreenError& error) {
  const double threshold = static_cast<double>(found.lower) - error.slack(row.spread);
  if (!row.bounded || !(static_cast<double>(found.upper[2]) < threshold)) return -1;
  const bool second = static_cast<double>(found.upper[1]) >= threshold;
  const bool mine = row.lane < kGroup || (row.lane < 2 * kGroup && second);
  const int group = found.group[row.lane < kGroup ? 0 : 1];
  const int code = mine ? code_of(group, row.lane % kGroup) : -1;

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
  const Candidates<false> mine_only{open ? Scored{score64(row, code), code} : no_code(), no_code()};
  return first_of_lanes(row, mine_only).best.index;
}

// The first of all codes whose float32 score may reach `lower`; -infinity scores all of them, equal ones too, in
// float64. Lanes take neighbouring codes, so that a warp reads whole lines.
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

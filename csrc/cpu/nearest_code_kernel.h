// The kernels of nearest_code, written once with the compiler's vector types; nearest_code_layout.h explains the search
// and its terms. Each nearest_code_<isa>.cpp defines SEED_FAST_LANES (floats per register), SEED_FAST_ROWS and
// SEED_FAST_VECTORS (register tile), and includes this. Everything here has internal linkage: otherwise the linker
// could keep one copy of a function for all files, and so bring AVX-512 code into the scalar path.
#include <cmath>
#include <limits>

#include "nearest_code_layout.h"

namespace seed_fast {
namespace {

constexpr int kWidth = SEED_FAST_LANES;
constexpr int kHalf = kWidth / 2;            // doubles per register
constexpr int kRows = SEED_FAST_ROWS;        // rows of z in the register tile
constexpr int kVectors = SEED_FAST_VECTORS;  // registers of codes in the register tile
constexpr int kParts = kLanes / kWidth;      // registers per tile of codes
constexpr int kStep = kVectors / kParts;     // tiles of codes in the register tile
static_assert(kLanes % kWidth == 0 && kVectors % kParts == 0 && kTiles % kStep == 0, "register tile");
constexpr float kInfinity = __builtin_inff();

typedef float Floats __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));
typedef float HalfFloats __attribute__((vector_size(kHalf * sizeof(float)), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(kHalf * sizeof(double)), aligned(8), may_alias));

inline Floats load(const void* from) { return *static_cast<const Floats*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<Floats*>(to) = value; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats splat(float value) { return value - Floats{}; }
// kHalf floats as doubles.
inline Doubles widen(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const HalfFloats*>(from), Doubles);
}

// How a screen multiplies; the template parameter Math of the functions below. This one: float32. Element: the type of
// an element of z'; steps: how many a row has; tiles: where the codes are.
struct Single {
  using Element = float;
  static int64_t steps(const PackedCodebook& codes) { return codes.D; }
  static const Element* tiles(const PackedCodebook& codes) { return codes.tiles; }
  static Floats multiply_add(Floats sum, Element z, Floats codes) { return sum + z * codes; }
};

// Scores of R rows and one block of codes, reduced to the maximum of each group: z [R, steps], tiles
// [kTiles, steps, kLanes], start [kTiles, kLanes] -> maxima [R, kLanes], `stride` from row to row.
template <class Math, int R>
void screen_rows(const typename Math::Element* z, int64_t steps, const typename Math::Element* tiles,
                 const float* start, float* maxima, int64_t stride) {
  Floats best[R][kParts];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < kParts; ++p) best[r][p] = splat(-kInfinity);
  for (int t = 0; t < kTiles; t += kStep) {
    Floats acc[R][kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Floats first = load(start + (t * kParts + v) * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][v] = first;
    }
    for (int64_t d = 0; d < steps; ++d) {
      Floats codes[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        codes[v] = load(tiles + ((t + v / kParts) * steps + d) * kLanes + (v % kParts) * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) acc[r][v] = Math::multiply_add(acc[r][v], z[r * steps + d], codes[v]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) best[r][v % kParts] = larger(acc[r][v], best[r][v % kParts]);
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < kParts; ++p) store(maxima + r * stride + p * kWidth, best[r][p]);
}

// screen_rows for a number of rows, 1 .. R, that is known at run time; none: nothing.
template <class Math, int R>
void screen_some(int64_t rows, const typename Math::Element* z, int64_t steps, const typename Math::Element* tiles,
                 const float* start, float* maxima, int64_t stride) {
  if constexpr (R > 0) {
    if (rows == R) return screen_rows<Math, R>(z, steps, tiles, start, maxima, stride);
    screen_some<Math, R - 1>(rows, z, steps, tiles, start, maxima, stride);
  }
}

// See NearestCodeKernels::screen.
template <class Math>
void screen(const typename Math::Element* z, int64_t rows, const PackedCodebook& codes, int64_t begin, int64_t end,
            float* maxima) {
  const int64_t steps = Math::steps(codes), stride = codes.blocks * kLanes;
  for (int64_t block = begin; block < end; ++block) {
    const auto* tiles = Math::tiles(codes) + block * kBlock * steps;
    const float* start = codes.start + block * kBlock;
    float* out = maxima + block * kLanes;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows)
      screen_rows<Math, kRows>(z + row * steps, steps, tiles, start, out + row * stride, stride);
    screen_some<Math, kRows - 1>(rows - row, z + row * steps, steps, tiles, start, out + row * stride, stride);
  }
}

// Error bound of the screen: the exact score is in [s - bound, s + bound].
//
//   - float32: s is a start value, rounded once, plus D products of factors that were rounded once, summed in any order
//     with or without fused multiply-add. The error is at most gamma(n) (||z'|| ||e'|| + ||e'||^2 / 2), where
//     gamma(n) = n u / (1 - n u), n = D + 8 and u = 2^-24.
//   - bfloat16 factors (u = 2^-8 each) add 2^-7 + 2^-16 to the factor of ||z'|| ||e'||.
//   - Integer factors, each wrong by up to 0.51 steps of 1 / 32000 of the norm, add 2 q + q^2 to it, where
//     q = 0.51 sqrt(D) / 32000.
//   - `tiny` covers underflow of products, sums and bfloat16 factors, which AVX512_BF16 flushes to zero, and integers
//     whose step is the smallest one (integer_step).
struct Bound {
  float norm, square, tiny;
  bool usable;  // false: scores could overflow, or D is too large

  Bound(const Row& row, const PackedCodebook& codes) {
    const double n = double(codes.D + 8) * 0x1p-24, largest = codes.summary->largest_spread;
    const double gamma = n / (1 - n) * 1.001;
    const double q = 0.51 * std::sqrt(double(codes.D)) / 32000;
    const double factors = row.pairs == PairType::bfloat16  ? 0x1p-7 + 0x1p-15
                           : row.pairs == PairType::integer ? 2 * q + q * q
                                                            : 0;
    norm = float((gamma + factors) * row.spread * 1.000001);
    square = float(gamma);
    const double unit = row.pairs == PairType::integer ? 0x1p-98 : 0x1p-126;
    tiny = float(double(codes.D + 8) * (1 + row.spread + largest) * unit);
    usable = n < 0.25 && (row.spread + largest) * largest < 0x1p125;
  }
  // The bounds of one register of groups.
  Floats at(const PackedCodebook& codes, int64_t group) const {
    return norm * load(codes.norm_bound + group) + square * load(codes.square_bound + group) + tiny;
  }
};

// True if a lane is at least `floor`.
inline bool any_reaches(Floats values, float floor) {
  const auto reached = values >= floor;  // per lane: all bits set if it is
  uint64_t words[sizeof reached / sizeof(uint64_t)], any = 0;
  __builtin_memcpy(words, &reached, sizeof reached);
  for (uint64_t word : words) any |= word;
  return any != 0;
}

// A lower bound of the exact score of the nearest code or, if a margin is wanted, of the second nearest: the largest or
// second largest (maximum - bound) of all groups. Groups whose (maximum + bound) is below it can be left out.
float lowest_of_interest(const Row& row, const PackedCodebook& codes, const Bound& bound) {
  Floats first = splat(-kInfinity), second = first;
  for (int64_t i = 0; i < codes.blocks * kLanes; i += kWidth) {
    const Floats low = load(row.maxima + i) - bound.at(codes, i);
    if (row.want_margin) second = larger(second, smaller(first, low));
    first = larger(first, low);
  }
  // Reduce over the lanes.
  float best = -kInfinity, runner_up = -kInfinity;
  for (int lane = 0; lane < kWidth; ++lane) {
    runner_up = first[lane] > best ? best : first[lane] > runner_up ? first[lane] : runner_up;
    best = first[lane] > best ? first[lane] : best;
  }
  for (int lane = 0; row.want_margin && lane < kWidth; ++lane)
    runner_up = second[lane] > runner_up ? second[lane] : runner_up;  // never above `first` of the same lane
  return row.want_margin ? runner_up : best;
}

// Calls visit(group) for every group in which the nearest code (or, if a margin is wanted, the second nearest) can be.
// Returns their number, or most_survivors if there are that many or more, or if the bound is not usable.
template <class Visit>
int64_t visit_survivors(const Row& row, const PackedCodebook& codes, const Visit& visit) {
  const int64_t groups = codes.blocks * kLanes, most = most_survivors(codes);
  const Bound bound(row, codes);
  if (!bound.usable) return most;
  const float floor = lowest_of_interest(row, codes, bound);
  if (!(floor > -kInfinity)) return most;
  constexpr int64_t kTogether = 4 * kLanes;  // groups that are excluded by one comparison, if none reaches the bound
  const auto high = [&](int64_t i) { return load(row.maxima + i) + bound.at(codes, i); };
  int64_t count = 0;
  for (int64_t begin = 0; begin < groups && count < most; begin += kTogether) {
    const int64_t end = begin + kTogether < groups ? begin + kTogether : groups;
    Floats highest = high(begin);
    for (int64_t i = begin + kWidth; i < end; i += kWidth) highest = larger(highest, high(i));
    if (!any_reaches(highest, floor)) continue;
    for (int64_t i = begin; i < end; i += kWidth) {
      const Floats ends = high(i);
      if (!any_reaches(ends, floor)) continue;
      for (int lane = 0; lane < kWidth; ++lane) {
        if (ends[lane] < floor) continue;
        ++count;
        visit(i + lane);
      }
    }
  }
  return count < most ? count : most;
}

int64_t survivors(const Row& row, const PackedCodebook& codes) {
  return visit_survivors(row, codes, [](int64_t) {});
}

// a.b in float64.
double dot(const float* a, const float* b, int64_t D) {
  Doubles sum = {};
  int64_t d = 0;
  for (; d + kHalf <= D; d += kHalf) sum += widen(a + d) * widen(b + d);
  double total = 0;
  for (int i = 0; i < kHalf; ++i) total += sum[i];
  for (; d < D; ++d) total += double(a[d]) * double(b[d]);
  return total;
}

// A code with its float64 score ||e||^2 - 2 z.e.
struct Scored {
  int64_t id = -1;  // -1: no code
  double score = __builtin_inf();
};

// The nearest of the codes considered so far and, for a margin, the second nearest, in exact arithmetic; of equally
// near ones the lower index. Scores whose difference is larger than the float64 error are compared in float64, others
// exactly.
struct Winner {
  const float* z;
  const PackedCodebook& codes;
  double doubt;  // bound on the error of the difference of two scores
  bool want_second;
  Scored best, second;

  // True if a is nearer than b.
  bool before(const Scored& a, const Scored& b) const {
    return b.id < 0 || a.score < b.score - doubt ||
           (a.score <= b.score + doubt && nearest_code_exactly_before(z, codes, a.id, b.id));
  }

  void consider(const Scored& code) {
    if (codes.marks[code.id] & kRepeats) return;
    if (before(code, best)) {
      second = best;
      best = code;
    } else if (want_second && before(code, second)) {
      second = code;
    }
  }

  // Codes with a higher float64 score need not be considered.
  double limit() const { return (want_second ? second : best).score + doubt; }

  // The difference of the two scores, precise enough to be rounded to float32.
  double margin() const {
    if (codes.marks[best.id] & kRepeated) return 0;
    const double gap = second.score - best.score;
    return gap > 0x1p26 * doubt ? gap : nearest_code_exact_gap(z, codes, best.id, second.id);
  }
};

// Considers every code, in float64, sixteen at a time.
void consider_all(Winner& winner) {
  const PackedCodebook& codes = winner.codes;
  for (int64_t first = 0; first < codes.K; first += kLanes) {
    const int64_t count = codes.K - first < kLanes ? codes.K - first : kLanes;
    double scores[kLanes], smallest = __builtin_inf();
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = codes.norms[first + i] - 2 * dot(winner.z, codes.entries + (first + i) * codes.D, codes.D);
      smallest = scores[i] < smallest ? scores[i] : smallest;
    }
    if (smallest > winner.limit()) continue;
    for (int64_t i = 0; i < count; ++i) winner.consider({first + i, scores[i]});
  }
}

// See NearestCodeKernels::rescore. Considers the codes of the groups that the screen left or, if these are too many,
// all.
NearestCode rescore(const Row& row, const PackedCodebook& codes) {
  const double z_norm = std::sqrt(dot(row.z, row.z, codes.D)) * (1 + 0x1p-40), largest = codes.summary->largest;
  const double doubt = double(codes.D + 8) * 0x1p-51 * (z_norm + largest) * largest;
  Winner winner{row.z, codes, doubt, row.want_margin, {}, {}};
  const int64_t count = visit_survivors(row, codes, [&](int64_t group) {
    int64_t code = (group / kLanes) * kBlock + group % kLanes;
    for (int t = 0; t < kTiles && code < codes.K; ++t, code += kLanes)
      winner.consider({code, codes.norms[code] - 2 * dot(row.z, codes.entries + code * codes.D, codes.D)});
  });
  if (count >= most_survivors(codes)) {
    winner.best = winner.second = {};
    consider_all(winner);
  }
  return {winner.best.id, row.want_margin ? winner.margin() : 0};
}

}  // namespace
}  // namespace seed_fast

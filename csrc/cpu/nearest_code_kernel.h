// The kernels of nearest_code, written once with the compiler's vector types. Each nearest_code_<isa>.cpp defines
// SEED_FAST_LANES (floats per register), SEED_FAST_ROWS and SEED_FAST_VECTORS (register tile), and includes this.
// Everything here has internal linkage: a function that the linker merged across files could carry AVX-512 code into
// the scalar path.
#include <cmath>
#include <limits>

#include "nearest_code_layout.h"

namespace seed_fast {
namespace {

constexpr int kWidth = SEED_FAST_LANES;
constexpr int kRows = SEED_FAST_ROWS;         // rows of z in the register tile
constexpr int kVectors = SEED_FAST_VECTORS;   // registers of codes in the register tile
constexpr int kParts = kLanes / kWidth;       // registers per tile of codes
constexpr int kStep = kVectors / kParts;      // tiles of codes in the register tile
static_assert(kLanes % kWidth == 0 && kVectors % kParts == 0 && kTiles % kStep == 0, "register tile");

typedef float Floats __attribute__((vector_size(kWidth * sizeof(float)), aligned(4)));
constexpr int kHalf = kWidth / 2;  // doubles per register
typedef float HalfFloats __attribute__((vector_size(kHalf * sizeof(float)), aligned(4)));
typedef double Doubles __attribute__((vector_size(kHalf * sizeof(double)), aligned(8)));

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<Floats*>(to) = value; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
inline Floats splat(float value) { return value - Floats{}; }
inline Doubles widen(const float* from) {
  return __builtin_convertvector(*reinterpret_cast<const HalfFloats*>(from), Doubles);
}

// One block of groups against R rows: z [R, D], tiles [kTiles, D, kLanes], start [kTiles, kLanes] -> maxima [R, kLanes].
template <int R>
void screen_rows(const float* z, int64_t D, const float* tiles, const float* start, float* maxima, int64_t stride) {
  Floats best[R][kParts];
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < kParts; ++p) best[r][p] = splat(-std::numeric_limits<float>::infinity());
  for (int t = 0; t < kTiles; t += kStep) {
    Floats acc[R][kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const Floats first = load(start + (t * kParts + v) * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][v] = first;
    }
    for (int64_t d = 0; d < D; ++d) {
      Floats codes[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v)
        codes[v] = load(tiles + ((t + v / kParts) * D + d) * kLanes + (v % kParts) * kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) acc[r][v] += z[r * D + d] * codes[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) best[r][v % kParts] = larger(acc[r][v], best[r][v % kParts]);
  }
  for (int r = 0; r < R; ++r)
    for (int p = 0; p < kParts; ++p) store(maxima + r * stride + p * kWidth, best[r][p]);
}

template <int R>
void screen_some(int64_t rows, const float* z, int64_t D, const float* tiles, const float* start, float* maxima,
                 int64_t stride) {
  if constexpr (R > 0) {
    if (rows == R) return screen_rows<R>(z, D, tiles, start, maxima, stride);
    screen_some<R - 1>(rows, z, D, tiles, start, maxima, stride);
  }
}

void screen(const float* z, int64_t rows, const PackedCodebook& codes, int64_t begin, int64_t end, float* maxima) {
  const int64_t D = codes.D, stride = codes.blocks * kLanes;
  for (int64_t block = begin; block < end; ++block) {
    const float* tiles = codes.tiles + block * kBlock * D;
    const float* start = codes.start + block * kBlock;
    float* out = maxima + block * kLanes;
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) screen_rows<kRows>(z + row * D, D, tiles, start, out + row * stride, stride);
    screen_some<kRows - 1>(rows - row, z + row * D, D, tiles, start, out + row * stride, stride);
  }
}

double dot(const float* a, const float* b, int64_t D) {
  Doubles sum = {};
  int64_t d = 0;
  for (; d + kHalf <= D; d += kHalf) sum += widen(a + d) * widen(b + d);
  double total = 0;
  for (int i = 0; i < kHalf; ++i) total += sum[i];
  for (; d < D; ++d) total += double(a[d]) * double(b[d]);
  return total;
}

// The two best codes seen so far, in float64; what float64 cannot order is ordered exactly.
struct Winner {
  const float* z;
  const PackedCodebook& codes;
  double doubt;  // bound on |computed - exact| of the difference of two scores
  int64_t id = -1;
  double best = std::numeric_limits<double>::infinity();
  double second = std::numeric_limits<double>::infinity();

  void forget() {
    id = -1;
    best = second = std::numeric_limits<double>::infinity();
  }

  void consider(int64_t code, double score) {
    if (codes.marks[code] & kRepeats) return;
    const bool before = id < 0 || score < best - doubt ||
                        (score <= best + doubt && nearest_code_exactly_before(z, codes, code, id));
    if (before) {
      second = best;
      best = score;
      id = code;
    } else if (score < second) {
      second = score;
    }
  }
};

// Every code in float64, a tile at a time.
void rescore_all(Winner& winner) {
  const PackedCodebook& codes = winner.codes;
  for (int64_t tile = 0; tile * kLanes < codes.K; ++tile) {
    const float* entries = codes.tiles + tile * codes.D * kLanes;
    Doubles dots[kLanes / kHalf] = {};
    for (int64_t d = 0; d < codes.D; ++d) {
      const double value = winner.z[d];
#pragma GCC unroll 16
      for (int part = 0; part < kLanes / kHalf; ++part) dots[part] += value * widen(entries + d * kLanes + part * kHalf);
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      const int64_t code = tile * kLanes + lane;
      if (code < codes.K) winner.consider(code, codes.norms[code] - 2 * dots[lane / kHalf][lane % kHalf]);
    }
  }
}

// Error bound of the screen. Each s is a start value rounded once and D products summed in some order with or without
// fused multiply-add, so |computed - exact| <= gamma (||z|| ||e|| + ||e||^2 / 2) with gamma = n u / (1 - n u), n = D + 4,
// u = 2^-24; `tiny` covers products that underflow. With it, [s - bound, s + bound] holds the exact value.
struct Bound {
  float norm, square, tiny;
  bool usable;

  Bound(double z_norm, const PackedCodebook& codes) {
    const double n = double(codes.D + 4) * 0x1p-24;
    const double gamma = n / (1 - n) * 1.001;
    norm = float(gamma * z_norm);
    square = float(gamma);
    tiny = float(codes.D + 4) * 0x1p-126f;
    usable = n < 0.25 && (z_norm + *codes.largest) * *codes.largest < 0x1p126;
  }
  Floats at(const PackedCodebook& codes, int64_t group) const {
    return norm * load(codes.norm_bound + group) + square * load(codes.square_bound + group) + tiny;
  }
  float of(const PackedCodebook& codes, int64_t group) const {
    return norm * codes.norm_bound[group] + square * codes.square_bound[group] + tiny;
  }
};

constexpr int64_t kStride = 8 * kLanes;  // groups that are ruled out together

bool any_reaches(float floor, const Bound& bound, const PackedCodebook& codes, const float* maxima, int64_t begin,
                 int64_t end) {
  Floats high = splat(-std::numeric_limits<float>::infinity());
  for (int64_t i = begin; i < end; i += kWidth) high = larger(high, load(maxima + i) + bound.at(codes, i));
  for (int lane = 0; lane < kWidth; ++lane)
    if (high[lane] >= floor) return true;
  return false;
}

NearestCode rescore(const float* z, const PackedCodebook& codes, const float* maxima, bool want_margin) {
  const double z_norm = std::sqrt(dot(z, z, codes.D)) * (1 + 0x1p-40);
  const double doubt = double(codes.D + 8) * 0x1p-51 * (z_norm + *codes.largest) * *codes.largest;
  Winner winner{z, codes, doubt};
  const Bound bound(z_norm, codes);
  // The winner's s is at least `floor`: the largest lower end of all groups. A margin needs the second largest too.
  float floor = -std::numeric_limits<float>::infinity();
  if (bound.usable) {
    Floats first = splat(floor), second = splat(floor);
    for (int64_t i = 0; i < codes.blocks * kLanes; i += kWidth) {
      const Floats low = load(maxima + i) - bound.at(codes, i);
      second = larger(second, smaller(first, low));
      first = larger(first, low);
    }
    float runner_up = floor;
    for (int lane = 0; lane < kWidth; ++lane) {
      for (int rank = 0; rank < 2; ++rank) {
        const float value = rank == 0 ? first[lane] : second[lane];
        if (value > floor) {
          runner_up = floor;
          floor = value;
        } else if (value > runner_up) {
          runner_up = value;
        }
      }
    }
    if (want_margin) floor = runner_up;
  }
  // Where the bound leaves more than this, scoring everything by tiles is cheaper than group by group.
  const int64_t groups = codes.blocks * kLanes, most = groups / 8 + 4;
  int64_t survivors = floor > -std::numeric_limits<float>::infinity() ? 0 : most;
  for (int64_t i = 0; i < groups && survivors < most; i += kStride) {
    const int64_t end = i + kStride < groups ? i + kStride : groups;
    if (!any_reaches(floor, bound, codes, maxima, i, end)) continue;
    for (int64_t group = i; group < end; ++group) {
      if (maxima[group] + bound.of(codes, group) < floor) continue;
      ++survivors;
      const int64_t code = (group / kLanes) * kBlock + group % kLanes;
      for (int64_t k = code, t = 0; t < kTiles && k < codes.K; ++t, k += kLanes)
        winner.consider(k, codes.norms[k] - 2 * dot(z, codes.entries + k * codes.D, codes.D));
    }
  }
  if (survivors >= most) {
    winner.forget();
    rescore_all(winner);
  }
  const bool tied = codes.marks[winner.id] & kRepeated;
  return {winner.id, tied || winner.second < winner.best ? 0.0 : winner.second - winner.best};
}

}  // namespace
}  // namespace seed_fast

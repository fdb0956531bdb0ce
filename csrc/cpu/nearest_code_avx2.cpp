#include <immintrin.h>

#define SEED_FAST_LANES 8
#define SEED_FAST_ROWS 6
#define SEED_FAST_VECTORS 2
#include "nearest_code_kernel.h"

namespace seed_fast {
namespace {

// acc += a b for 16-bit integers, with the products of two neighbours added. Both instructions are in one asm
// statement, because GCC 12 otherwise computes the products for all accumulators first and runs out of registers.
inline void add_products(__m256i& acc, __m256i a, __m256i b) {
  __m256i products;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(acc), "=&x"(products) : "x"(a), "x"(b));
}

// screen_rows in integers: products of 16-bit integers, two at a time, are added in 32 bits, which takes half the
// instructions of float32. z [R, pairs]; steps [R]: their steps (integer_step).
template <int R>
void screen_integer_rows(const uint32_t* z, const float* steps, const PackedCodebook& codes, int64_t block,
                         float* maxima, int64_t stride) {
  static_assert(kParts == 2 && kStep == 1, "a tile is two registers");
  const int64_t pairs = codes.pairs;
  Floats best[R][2], scale[R][2];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      best[r][v] = splat(-kInfinity);
      scale[r][v] = splat(steps[r]) * load(codes.pair_step + block * kLanes + v * kWidth);
    }
  }
  for (int t = 0; t < kTiles; ++t) {
    const uint32_t* tile = codes.pair_tiles + (block * kTiles + t) * pairs * kLanes;
    const float* start = codes.start + block * kBlock + t * kLanes;
    __m256i acc[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
    for (int64_t p = 0; p < pairs; ++p) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + p * kLanes));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + p * kLanes + kWidth));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const __m256i value = _mm256_set1_epi32(int(z[r * pairs + p]));
        add_products(acc[r][0], value, low);
        add_products(acc[r][1], value, high);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int v = 0; v < 2; ++v) {
        const Floats score = Floats(_mm256_cvtepi32_ps(acc[r][v])) * scale[r][v] + load(start + v * kWidth);
        best[r][v] = larger(score, best[r][v]);
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) store(maxima + r * stride + v * kWidth, best[r][v]);
}

// screen_integer_rows for a number of rows, 1 .. R, that is known at run time.
template <int R>
void screen_integer_some(int64_t rows, const uint32_t* z, const float* steps, const PackedCodebook& codes,
                         int64_t block, float* maxima, int64_t stride) {
  if constexpr (R > 0) {
    if (rows == R) return screen_integer_rows<R>(z, steps, codes, block, maxima, stride);
    screen_integer_some<R - 1>(rows, z, steps, codes, block, maxima, stride);
  }
}

// See NearestCodeKernels::screen_pairs.
void screen_integers(const uint32_t* z, const double* spreads, int64_t rows, const PackedCodebook& codes, int64_t begin,
                     int64_t end, float* maxima) {
  const int64_t stride = codes.blocks * kLanes;
  for (int64_t block = begin; block < end; ++block) {
    float* out = maxima + block * kLanes;
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t some = rows - row < kRows ? rows - row : kRows;
      float steps[kRows];
      for (int64_t r = 0; r < some; ++r) steps[r] = integer_step(spreads[row + r]);
      screen_integer_some<kRows>(some, z + row * codes.pairs, steps, codes, block, out + row * stride, stride);
    }
  }
}

}  // namespace

const NearestCodeKernels nearest_code_avx2 = {PairType::integer, screen<Single>, screen_integers, rescore, survivors};
}  // namespace seed_fast

// Layout of a packed codebook, and the table of kernels that each instruction set provides.
//
// The screen computes s_k = z.e_k - ||e_k||^2 / 2 in float32 (its argmax is the argmin of the distance) and keeps only
// the maximum over each group of kGroup codes, so a row needs K / kGroup floats whatever N is. A group whose maximum
// could, within the error bound, hold the winner is scored again in float64.
#pragma once

#include <cstddef>
#include <cstdint>

namespace seed_fast {

constexpr int kLanes = 16;             // codes side by side in a tile
constexpr int kTiles = 8;              // tiles that share one row of group maxima
constexpr int kGroup = kTiles;         // codes per group: one lane through all tiles
constexpr int kBlock = kLanes * kTiles;  // codes per block of groups
constexpr uint8_t kRepeats = 1;        // equal to an entry before it: never wins, so it is left out of the search
constexpr uint8_t kRepeated = 2;       // an entry after it is equal: the margin is 0

struct PackedCodebook {
  int64_t K, D, blocks;  // blocks = ceil(K / kBlock)
  float* tiles;          // [blocks * kTiles, D, kLanes] entries, transposed; zeros where there is none
  float* start;          // [blocks * kTiles, kLanes] -||e||^2 / 2, -inf where there is none
  float* norm_bound;     // [blocks, kLanes] largest ||e|| of the group, rounded up
  float* square_bound;   // [blocks, kLanes] its square over 2, rounded up
  float* entries;        // [K, D]
  double* norms;         // [K] ||e||^2
  uint8_t* marks;        // [K] kRepeats | kRepeated
  double* largest;       // [1] largest ||e||

  PackedCodebook(const void* base, int64_t K, int64_t D);
  size_t bytes;
};

struct NearestCode {
  int64_t id;
  double margin;
};

struct NearestCodeKernels {
  // maxima[row, block, lane] = group maximum of s, for rows [0, rows) of z [rows, D] and blocks [begin, end).
  void (*screen)(const float* z, int64_t rows, const PackedCodebook& codes, int64_t begin, int64_t end, float* maxima);
  // The exact winner for one row of z [D], given its maxima [blocks, kLanes].
  NearestCode (*rescore)(const float* z, const PackedCodebook& codes, const float* maxima, bool want_margin);
};

extern const NearestCodeKernels nearest_code_scalar;
extern const NearestCodeKernels nearest_code_avx2;
extern const NearestCodeKernels nearest_code_avx512;

// Whether score(a) < score(b), or they are equal and a < b, in exact arithmetic; score(e) = ||e||^2 - 2 z.e.
bool nearest_code_exactly_before(const float* z, const PackedCodebook& codes, int64_t a, int64_t b);

}  // namespace seed_fast

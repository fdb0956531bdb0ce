// Layout of a packed codebook, and the table of kernels that each instruction set provides.
//
// With a centre c, z' = z - c and e' = e - c, a screen computes approximate scores s_k = z'.e'_k - ||e'_k||^2 / 2,
// whose argmax is the argmin of the distance. It keeps only the maximum over each group of kTiles codes, so a row needs
// K / kTiles floats. Groups in which, given the error bound of the scores, the nearest code can be are scored again in
// float64 from the entries themselves. Because of the centre the error bound is proportional to the spread of the
// codebook, not to its distance from zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nearest_code_cpu.h"

namespace seed_fast {

constexpr int kLanes = 16;               // codes of a tile, which are neighbours in memory
constexpr int kTiles = 8;                // tiles per block; a group is the codes in one lane of all of them
constexpr int kBlock = kLanes * kTiles;  // codes per block
constexpr uint8_t kRepeats = 1;          // mark: the entry equals an earlier one, so it is left out of the search
constexpr uint8_t kRepeated = 2;         // mark: a later entry equals it, so if it is the nearest the margin is 0

// What a word of pair_tiles holds: two neighbouring dimensions as bfloat16, or as 16-bit integers.
enum class PairType : int { none, bfloat16, integer };

struct PackedCodebook {
  int64_t K, D, blocks, pairs;  // blocks = ceil(K / kBlock), pairs = ceil(D / 2)
  float* tiles;                 // [blocks * kTiles, D, kLanes] e', transposed; zeros where there is no entry
  uint32_t* pair_tiles;         // [blocks * kTiles, pairs, kLanes] e' in pairs; null if this CPU can't multiply pairs
  float* pair_step;             // [blocks, kLanes] by what integers of the group are multiplied to get e'
  float* start;                 // [blocks * kTiles, kLanes] -||e'||^2 / 2; -inf where there is no entry
  float* norm_bound;            // [blocks, kLanes] largest ||e'|| of the group, rounded up
  float* square_bound;          // [blocks, kLanes] its square over 2, rounded up
  float* center;                // [D] c
  float* entries;               // [K, D] e
  double* norms;                // [K] ||e||^2
  uint8_t* marks;               // [K] kRepeats | kRepeated
  struct Summary {
    double largest;         // largest ||e||
    double largest_spread;  // largest ||e'||
    PairType pairs;         // what pair_tiles hold; none if they are too imprecise to exclude most codes
  }* summary;               // [1]

  // Sets the pointers into a buffer at `base`, and `bytes`, the size of that buffer.
  PackedCodebook(const void* base, int64_t K, int64_t D);
  size_t bytes;
};

struct NearestCode {
  int64_t id;
  double margin;
};

// One row of z with everything that the kernels read.
struct Row {
  const float* z;       // [D]
  const float* maxima;  // [blocks, kLanes] group maxima of s
  double spread;        // ||z'||, rounded up
  PairType pairs;       // the precision in which the maxima were computed; none: float32
  bool want_margin;
};

struct NearestCodeKernels {
  PairType pairs;  // of screen_pairs
  // maxima[row, block, lane] = group maximum of s, for z' [rows, D] and blocks [begin, end).
  void (*screen)(const float* z, int64_t rows, const PackedCodebook& codes, int64_t begin, int64_t end, float* maxima);
  // The same for z' [rows, pairs] and their spreads [rows]; null if the instruction set has no such product.
  void (*screen_pairs)(const uint32_t* z, const double* spreads, int64_t rows, const PackedCodebook& codes,
                       int64_t begin, int64_t end, float* maxima);
  // The nearest code in exact arithmetic, and the margin if it is wanted.
  NearestCode (*rescore)(const Row& row, const PackedCodebook& codes);
  // The number of groups in which the nearest code can be, at most most_survivors.
  int64_t (*survivors)(const Row& row, const PackedCodebook& codes);
};

extern const NearestCodeKernels nearest_code_scalar;
extern const NearestCodeKernels nearest_code_avx2;
extern const NearestCodeKernels nearest_code_avx512;
extern const NearestCodeKernels nearest_code_avx512bf16;

// The kernels of an instruction set, or of the best one that this CPU has.
const NearestCodeKernels& kernels_for(Isa isa);

// x - c in float32; returns ||x - c||, rounded up.
double center_row(const float* x, const PackedCodebook& codes, float* centered);

// The step of the integers of a row or group whose norms are at most `spread`: an element is its integer times the
// step. Integers and their norm stay below 2^15, so that sums of their products fit into 32 bits.
static inline float integer_step(double spread) { return float(spread > 0x1p-85 ? spread / 32000 : 0x1p-100); }

// Converts a centred row [D] to pairs; `step` is for integers.
void pair_row(const float* centered, int64_t D, PairType type, float step, uint32_t* pairs);

// With this many groups left, scoring every code in order is cheaper than scoring group by group.
inline int64_t most_survivors(const PackedCodebook& codes) { return codes.blocks * kLanes / 8 + 4; }

// True if score(a) < score(b), or they are equal and a < b, in exact arithmetic; score(e) = ||e||^2 - 2 z.e.
bool nearest_code_exactly_before(const float* z, const PackedCodebook& codes, int64_t a, int64_t b);

// score(second) - score(best), which must not be negative, from an exact sum.
double nearest_code_exact_gap(const float* z, const PackedCodebook& codes, int64_t best, int64_t second);

}  // namespace seed_fast

// Packing a codebook for nearest_code on the CPU: centre, tiles, bounds, repeated entries.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "float_mode.h"
#include "nearest_code_cpu.h"
#include "nearest_code_layout.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kSample = 127;  // the centre is the median of at most this many entries
constexpr int64_t kProbes = 4;    // entries for which pairs_help searches

float round_up(double value) { return std::nextafter(float(value), std::numeric_limits<float>::infinity()); }

// Sets the centre to the median of some entries in each dimension, which, unlike a mean, stays among the entries if a
// few of them are far away.
void find_center(PackedCodebook& codes) {
  const int64_t count = std::min(codes.K, kSample);
  std::vector<float> values(count);
  for (int64_t d = 0; d < codes.D; ++d) {
    for (int64_t i = 0; i < count; ++i) values[i] = codes.entries[i * codes.K / count * codes.D + d];
    std::nth_element(values.begin(), values.begin() + count / 2, values.end());
    codes.center[d] = values[count / 2];
  }
}

// Marks every entry that equals an earlier one, so that ties between equal entries cost a search no time. The hash
// table has open addressing: equal hashes are looked for in the following slots.
void mark_repeats(PackedCodebook& codes, const std::vector<uint64_t>& hashes) {
  size_t capacity = 16;
  while (capacity < size_t(2 * codes.K)) capacity *= 2;
  std::vector<int64_t> table(capacity, -1);
  const size_t entry_bytes = size_t(codes.D) * sizeof(float);
  for (int64_t k = 0; k < codes.K; ++k) {
    codes.marks[k] = 0;
    for (size_t slot = hashes[k] & (capacity - 1);; slot = (slot + 1) & (capacity - 1)) {
      const int64_t other = table[slot];
      if (other < 0) {
        table[slot] = k;
        break;
      }
      if (hashes[other] == hashes[k] &&
          std::memcmp(codes.entries + other * codes.D, codes.entries + k * codes.D, entry_bytes) == 0) {
        codes.marks[k] = kRepeats;
        codes.marks[other] |= kRepeated;
        break;
      }
    }
  }
}

// Copies entry k as float32, stores its squared norm, and returns its hash.
uint64_t read_entry(PackedCodebook& codes, int64_t k, const void* codebook, DType dtype, int64_t stride_k,
                    int64_t stride_d) {
  double norm = 0;
  uint64_t hash = 0;
  for (int64_t d = 0; d < codes.D; ++d) {
    // Adding zero turns -0 into +0, so that equal entries have equal bytes.
    const float value = load_as_float(codebook, k * stride_k + d * stride_d, dtype) + 0.0f;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    codes.entries[k * codes.D + d] = value;
    norm += double(value) * value;
    hash += (bits + 0x9e3779b97f4a7c15ull) * (2 * uint64_t(d) + 0xff51afd7ed558ccdull);
  }
  codes.norms[k] = norm;
  return hash ^ hash >> 31;
}

// Fills the tiles, start values and bounds of one block; returns its largest ||e'||.
double pack_block(PackedCodebook& codes, int64_t block, PairType type) {
  const int64_t D = codes.D;
  std::vector<float> centered(D);
  std::vector<uint32_t> pairs(codes.pairs);
  double largest[kLanes] = {};
  // float32 tiles and start values.
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t k = block * kBlock + i, tile = k / kLanes, lane = k % kLanes;
    const bool absent = k >= codes.K || (codes.marks[k] & kRepeats);
    std::fill(centered.begin(), centered.end(), 0.0f);
    const double spread = absent ? 0 : center_row(codes.entries + k * D, codes, centered.data());
    codes.start[k] = absent ? -std::numeric_limits<float>::infinity() : float(-0.5 * spread * spread);
    largest[lane] = std::max(largest[lane], spread);
    for (int64_t d = 0; d < D; ++d) codes.tiles[(tile * D + d) * kLanes + lane] = centered[d];
  }
  // Bounds and step of each group.
  for (int lane = 0; lane < kLanes; ++lane) {
    codes.norm_bound[block * kLanes + lane] = round_up(largest[lane]);
    codes.square_bound[block * kLanes + lane] = round_up(0.5 * largest[lane] * largest[lane]);
    codes.pair_step[block * kLanes + lane] = integer_step(largest[lane]);
  }
  // Tiles of pairs, which need the step.
  for (int64_t i = 0; i < kBlock && type != PairType::none; ++i) {
    const int64_t tile = block * kTiles + i / kLanes, lane = i % kLanes;
    for (int64_t d = 0; d < D; ++d) centered[d] = codes.tiles[(tile * D + d) * kLanes + lane];
    pair_row(centered.data(), D, type, codes.pair_step[block * kLanes + lane], pairs.data());
    for (int64_t p = 0; p < codes.pairs; ++p) codes.pair_tiles[(tile * codes.pairs + p) * kLanes + lane] = pairs[p];
  }
  return *std::max_element(largest, largest + kLanes);
}

// True if 16-bit pairs are precise enough to exclude most groups, as judged by searching for a few of the entries.
bool pairs_help(const PackedCodebook& codes, const NearestCodeKernels& kernels) {
  if (kernels.pairs == PairType::none) return false;
  std::vector<float> centered(codes.D), maxima(codes.blocks * kLanes);
  std::vector<uint32_t> pairs(codes.pairs);
  int64_t helped = 0;
  for (int64_t i = 0; i < kProbes; ++i) {
    const float* entry = codes.entries + i * codes.K / kProbes * codes.D;
    const double spread = center_row(entry, codes, centered.data());
    pair_row(centered.data(), codes.D, kernels.pairs, integer_step(spread), pairs.data());
    kernels.screen_pairs(pairs.data(), &spread, 1, codes, 0, codes.blocks, maxima.data());
    const Row row{entry, maxima.data(), spread, kernels.pairs, false};
    helped += kernels.survivors(row, codes) < most_survivors(codes);
  }
  return 2 * helped > kProbes;
}

}  // namespace

PackedCodebook::PackedCodebook(const void* base, int64_t K, int64_t D)
    : K(K), D(D), blocks((K + kBlock - 1) / kBlock), pairs((D + 1) / 2), bytes(0) {
  char* const start_of_all = static_cast<char*>(const_cast<void*>(base));
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(start_of_all + bytes);
    bytes += (size_t(count) * sizeof(*pointer) + 63) / 64 * 64;
  };
  take(tiles, blocks * kBlock * D);
  take(pair_tiles, best_isa() >= Isa::avx2 ? blocks * kBlock * pairs : 0);
  if (best_isa() < Isa::avx2) pair_tiles = nullptr;
  take(pair_step, blocks * kLanes);
  take(start, blocks * kBlock);
  take(norm_bound, blocks * kLanes);
  take(square_bound, blocks * kLanes);
  take(center, D);
  take(entries, K * D);
  take(norms, K);
  take(marks, K);
  take(summary, 1);
}

double center_row(const float* x, const PackedCodebook& codes, float* centered) {
  double square = 0;
  for (int64_t d = 0; d < codes.D; ++d) {
    const double value = double(x[d]) - codes.center[d];
    centered[d] = float(value);
    square += value * value;
  }
  return std::sqrt(square) * (1 + 0x1p-30);
}

void pair_row(const float* centered, int64_t D, PairType type, float step, uint32_t* pairs) {
  const float inverse = 1 / step;
  const auto element = [&](int64_t d) -> uint32_t {
    if (d >= D) return 0;
    if (type == PairType::bfloat16) return float_to_bfloat16(centered[d]);
    const float steps = centered[d] * inverse;
    return uint16_t(int32_t(steps + (steps < 0 ? -0.5f : 0.5f)));
  };
  for (int64_t p = 0; p < (D + 1) / 2; ++p) pairs[p] = element(2 * p) | element(2 * p + 1) << 16;
}

size_t nearest_code_cpu_packed_bytes(int64_t K, int64_t D) { return PackedCodebook(nullptr, K, D).bytes; }

int64_t pack_codebook_cpu(const void* codebook, DType dtype, int64_t K, int64_t D, int64_t stride_k, int64_t stride_d,
                          void* packed, int threads, Isa isa) {
  const NearestCodeKernels& kernels = kernels_for(isa);
  PackedCodebook codes(packed, K, D);
  std::vector<uint64_t> hashes(K);
  const int64_t chunk = std::max<int64_t>(1, (K + 63) / 64);
  parallel_for((K + chunk - 1) / chunk, threads, [&](int64_t part) {
    const FloatMode mode;
    for (int64_t k = part * chunk; k < std::min(K, (part + 1) * chunk); ++k)
      hashes[k] = read_entry(codes, k, codebook, dtype, stride_k, stride_d);
  });
  double largest = 0;
  for (int64_t k = 0; k < K; ++k) {
    if (!(codes.norms[k] <= std::numeric_limits<float>::max())) return k;
    largest = std::max(largest, codes.norms[k]);
  }
  mark_repeats(codes, hashes);
  find_center(codes);
  std::vector<double> spreads(codes.blocks);
  parallel_for(codes.blocks, threads, [&](int64_t block) {
    const FloatMode mode;
    spreads[block] = pack_block(codes, block, kernels.pairs);
  });
  const FloatMode mode;
  *codes.summary = {std::sqrt(largest) * (1 + 0x1p-40), *std::max_element(spreads.begin(), spreads.end()),
                    PairType::none};
  if (pairs_help(codes, kernels)) codes.summary->pairs = kernels.pairs;
  return -1;
}

}  // namespace seed_fast

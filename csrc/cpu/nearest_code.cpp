// nearest_code on the CPU: packing, the split of the work over threads, and the choice of instruction set.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu_features.h"
#include "float_mode.h"
#include "nearest_code_cpu.h"
#include "nearest_code_layout.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kPanel = 96;     // rows of z that one task screens: with one block of codes they stay in the L1 cache
constexpr int64_t kSample = 127;   // entries whose median is the centre
constexpr int64_t kProbes = 4;     // entries that are searched for, to see whether bfloat16 tells them apart

const NearestCodeKernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (std::min(isa, best_isa())) {
    case Isa::avx512bf16: return nearest_code_avx512bf16;
    case Isa::avx512: return nearest_code_avx512;
    case Isa::avx2: return nearest_code_avx2;
    default: break;
  }
#endif
  return nearest_code_scalar;
}

float round_up(double value) { return std::nextafter(float(value), std::numeric_limits<float>::infinity()); }

uint32_t bfloat16_bits(float value) {  // finite; nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

// x - c in float32 and, where pairs is not null, as pairs of bfloat16; returns ||x - c||, rounded up.
double center_row(const float* x, const PackedCodebook& codes, float* centered, uint32_t* pairs) {
  double square = 0;
  for (int64_t d = 0; d < codes.D; ++d) {
    const double value = double(x[d]) - codes.center[d];
    centered[d] = float(value);
    square += value * value;
  }
  for (int64_t p = 0; pairs && p < codes.pairs; ++p) {
    const uint32_t high = 2 * p + 1 < codes.D ? bfloat16_bits(centered[2 * p + 1]) : 0;
    pairs[p] = bfloat16_bits(centered[2 * p]) | high << 16;
  }
  return std::sqrt(square) * (1 + 0x1p-30);
}

// The median of some entries, coordinate by coordinate: inside the codebook even when a few entries are far away.
void find_center(PackedCodebook& codes) {
  const int64_t count = std::min(codes.K, kSample);
  std::vector<float> values(count);
  for (int64_t d = 0; d < codes.D; ++d) {
    for (int64_t i = 0; i < count; ++i) values[i] = codes.entries[i * codes.K / count * codes.D + d];
    std::nth_element(values.begin(), values.begin() + count / 2, values.end());
    codes.center[d] = values[count / 2];
  }
}

// Marks every entry that equals one before it, so that ties between equal entries cost the search nothing.
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

// Entry k as float32, with its norm and its hash.
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

// One block of tiles with its bounds; returns the largest ||e'||.
double pack_block(PackedCodebook& codes, int64_t block) {
  const int64_t D = codes.D;
  std::vector<float> centered(D);
  std::vector<uint32_t> pairs(codes.pairs);
  double largest[kLanes] = {};
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t k = block * kBlock + i, tile = k / kLanes, lane = k % kLanes;
    const bool absent = k >= codes.K || (codes.marks[k] & kRepeats);
    double spread = 0;
    if (absent) {
      std::fill(centered.begin(), centered.end(), 0.0f);
      std::fill(pairs.begin(), pairs.end(), 0u);
    } else {
      spread = center_row(codes.entries + k * D, codes, centered.data(), codes.pair_tiles ? pairs.data() : nullptr);
    }
    codes.start[k] = absent ? -std::numeric_limits<float>::infinity() : float(-0.5 * spread * spread);
    largest[lane] = std::max(largest[lane], spread);
    for (int64_t d = 0; d < D; ++d) codes.tiles[(tile * D + d) * kLanes + lane] = centered[d];
    for (int64_t p = 0; codes.pair_tiles && p < codes.pairs; ++p)
      codes.pair_tiles[(tile * codes.pairs + p) * kLanes + lane] = pairs[p];
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    codes.norm_bound[block * kLanes + lane] = round_up(largest[lane]);
    codes.square_bound[block * kLanes + lane] = round_up(0.5 * largest[lane] * largest[lane]);
  }
  return *std::max_element(largest, largest + kLanes);
}

// Searches for a few of the entries themselves: where bfloat16 leaves most groups open for them, it will for z.
bool pairs_help(const PackedCodebook& codes) {
  const NearestCodeKernels& kernels = kernels_for(Isa::avx512bf16);
  if (!kernels.screen_pairs || !codes.pair_tiles) return false;
  std::vector<float> centered(codes.D), maxima(codes.blocks * kLanes);
  std::vector<uint32_t> pairs(codes.pairs);
  int64_t helped = 0;
  for (int64_t i = 0; i < kProbes; ++i) {
    const float* entry = codes.entries + i * codes.K / kProbes * codes.D;
    const double spread = center_row(entry, codes, centered.data(), pairs.data());
    kernels.screen_pairs(pairs.data(), 1, codes, 0, codes.blocks, maxima.data());
    const Row row{entry, maxima.data(), spread, true, false};
    helped += kernels.survivors(row, codes) < most_survivors(codes);
  }
  return 2 * helped > kProbes;
}

// Rows of z as float32, screened and decided. A row without a nearest code goes through as zeros.
class Search {
 public:
  enum class State : uint8_t { fine, nan, overflow };

  // One stretch of rows and what the kernels need of them.
  struct Buffers {
    std::vector<float> rows, centered, maxima;
    std::vector<uint32_t> pairs;
    std::vector<double> spreads;
    std::vector<State> states;
  };

  Search(const void* z, DType dtype, int64_t stride_n, int64_t stride_d, const PackedCodebook& codes,
         const NearestCodeKernels& kernels, int64_t* ids, float* margin)
      : z_(z), dtype_(dtype), stride_n_(stride_n), stride_d_(stride_d), codes_(codes), kernels_(kernels),
        pairs_(kernels.screen_pairs && codes.summary->pairs_useful), ids_(ids), margin_(margin) {}

  void read(int64_t begin, int64_t end, Buffers& out) {
    const int64_t D = codes_.D, count = end - begin;
    out.rows.resize(count * D);
    out.centered.resize(count * D);
    out.maxima.resize(count * codes_.blocks * kLanes);
    out.spreads.resize(count);
    out.states.resize(count);
    if (pairs_) out.pairs.resize(count * codes_.pairs);
    for (int64_t i = 0; i < count; ++i) {
      float* row = out.rows.data() + i * D;
      out.states[i] = read_row(begin + i, row);
      out.spreads[i] = center_row(row, codes_, out.centered.data() + i * D,
                                  pairs_ ? out.pairs.data() + i * codes_.pairs : nullptr);
    }
  }

  // Rows [first, last) of the buffers against blocks [begin, end).
  void screen(Buffers& buffers, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    float* maxima = buffers.maxima.data() + first * codes_.blocks * kLanes;
    if (pairs_) {
      kernels_.screen_pairs(buffers.pairs.data() + first * codes_.pairs, last - first, codes_, begin, end, maxima);
    } else {
      kernels_.screen(buffers.centered.data() + first * codes_.D, last - first, codes_, begin, end, maxima);
    }
  }

  // Row i of the buffers, which is row `at` of z.
  void decide(const Buffers& buffers, int64_t i, int64_t at) const {
    NearestCode found{-1, std::numeric_limits<double>::quiet_NaN()};
    if (buffers.states[i] == State::fine) {
      const Row row{buffers.rows.data() + i * codes_.D, buffers.maxima.data() + i * codes_.blocks * kLanes,
                    buffers.spreads[i], pairs_, margin_ != nullptr};
      found = kernels_.rescore(row, codes_);
    }
    ids_[at] = found.id;
    if (margin_) margin_[at] = float(found.margin);
  }

  int64_t overflow() const { return overflow_ == std::numeric_limits<int64_t>::max() ? -1 : overflow_.load(); }

 private:
  State read_row(int64_t row, float* out) {
    double norm = 0;
    for (int64_t d = 0; d < codes_.D; ++d) {
      out[d] = load_as_float(z_, row * stride_n_ + d * stride_d_, dtype_);
      norm += double(out[d]) * out[d];
    }
    if (norm <= std::numeric_limits<float>::max()) return State::fine;
    const bool nan = std::any_of(out, out + codes_.D, [](float x) { return x != x; });
    std::fill(out, out + codes_.D, 0.0f);
    if (nan) return State::nan;
    for (int64_t seen = overflow_; row < seen && !overflow_.compare_exchange_weak(seen, row);) {
    }
    return State::overflow;
  }

  const void* z_;
  DType dtype_;
  int64_t stride_n_, stride_d_;
  const PackedCodebook& codes_;
  const NearestCodeKernels& kernels_;
  bool pairs_;
  int64_t* ids_;
  float* margin_;
  std::atomic<int64_t> overflow_{std::numeric_limits<int64_t>::max()};
};

// Adds x to a sum of doubles kept as an expansion of nonoverlapping components, smallest first (Shewchuk 1997).
void grow(std::vector<double>& expansion, double x) {
  size_t kept = 0;
  for (double component : expansion) {
    const double sum = x + component, virtual_part = sum - x;
    const double error = (x - (sum - virtual_part)) + (component - virtual_part);
    if (error != 0) expansion[kept++] = error;
    x = sum;
  }
  expansion.resize(kept);
  expansion.push_back(x);
}

}  // namespace

Isa best_isa() {
  const CpuFeatures& cpu = cpu_features();
  return cpu.avx512_bf16 ? Isa::avx512bf16 : cpu.avx512 ? Isa::avx512 : cpu.avx2 ? Isa::avx2 : Isa::scalar;
}

PackedCodebook::PackedCodebook(const void* base, int64_t K, int64_t D)
    : K(K), D(D), blocks((K + kBlock - 1) / kBlock), pairs((D + 1) / 2), bytes(0) {
  char* const start_of_all = static_cast<char*>(const_cast<void*>(base));
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(start_of_all + bytes);
    bytes += (size_t(count) * sizeof(*pointer) + 63) / 64 * 64;
  };
  take(tiles, blocks * kBlock * D);
  take(pair_tiles, best_isa() >= Isa::avx512bf16 ? blocks * kBlock * pairs : 0);
  if (best_isa() < Isa::avx512bf16) pair_tiles = nullptr;
  take(start, blocks * kBlock);
  take(norm_bound, blocks * kLanes);
  take(square_bound, blocks * kLanes);
  take(center, D);
  take(entries, K * D);
  take(norms, K);
  take(marks, K);
  take(summary, 1);
}

bool nearest_code_exactly_before(const float* z, const PackedCodebook& codes, int64_t a, int64_t b) {
  // Products of two float32 are exact in float64, so the terms of score(a) - score(b) are, and so is their expansion.
  std::vector<double> difference;
  for (const auto& [code, sign] : {std::pair<int64_t, double>{a, 1}, {b, -1}}) {
    const float* entry = codes.entries + code * codes.D;
    for (int64_t d = 0; d < codes.D; ++d) {
      grow(difference, sign * double(entry[d]) * entry[d]);
      grow(difference, -2 * sign * double(z[d]) * entry[d]);
    }
  }
  const double sign = difference.back();
  return sign != 0 ? sign < 0 : a < b;
}

size_t nearest_code_cpu_packed_bytes(int64_t K, int64_t D) { return PackedCodebook(nullptr, K, D).bytes; }

int64_t pack_codebook_cpu(const void* codebook, DType dtype, int64_t K, int64_t D, int64_t stride_k, int64_t stride_d,
                          void* packed, int threads) {
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
    spreads[block] = pack_block(codes, block);
  });
  const FloatMode mode;
  *codes.summary = {std::sqrt(largest) * (1 + 0x1p-40), *std::max_element(spreads.begin(), spreads.end()), false};
  codes.summary->pairs_useful = pairs_help(codes);
  return -1;
}

int64_t nearest_code_cpu(const void* z, DType dtype, int64_t N, int64_t D, int64_t stride_n, int64_t stride_d,
                         const void* packed, int64_t K, int64_t* ids, float* margin, int threads, Isa isa) {
  const PackedCodebook codes(packed, K, D);
  Search search(z, dtype, stride_n, stride_d, codes, kernels_for(isa), ids, margin);
  const int64_t panels = (N + kPanel - 1) / kPanel;
  if (panels >= 2 * threads) {
    // Enough rows: each task screens and decides a panel with buffers of its own.
    parallel_for(panels, threads, [&](int64_t panel) {
      const FloatMode mode;
      thread_local Search::Buffers buffers;
      const int64_t begin = panel * kPanel, end = std::min(N, begin + kPanel);
      search.read(begin, end, buffers);
      search.screen(buffers, 0, end - begin, 0, codes.blocks);
      for (int64_t row = begin; row < end; ++row) search.decide(buffers, row - begin, row);
    });
  } else if (N > 0) {
    // Few rows (one image has 32): the codebook is split as well, and the rows are decided when all maxima are there.
    const int64_t slices = std::min<int64_t>(codes.blocks, 4 * threads);
    constexpr int64_t chunk = 8;
    Search::Buffers buffers;
    {
      const FloatMode mode;
      search.read(0, N, buffers);
    }
    parallel_for(slices * panels, threads, [&](int64_t task) {
      const FloatMode mode;
      const int64_t slice = task % slices, first = task / slices * kPanel;
      search.screen(buffers, first, std::min(N, first + kPanel), slice * codes.blocks / slices,
                    (slice + 1) * codes.blocks / slices);
    });
    parallel_for((N + chunk - 1) / chunk, threads, [&](int64_t part) {
      const FloatMode mode;
      for (int64_t row = part * chunk; row < std::min(N, (part + 1) * chunk); ++row) search.decide(buffers, row, row);
    });
  }
  return search.overflow();
}

}  // namespace seed_fast

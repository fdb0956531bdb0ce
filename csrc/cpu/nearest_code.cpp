// nearest_code on the CPU: packing, the split of the work over threads, and the choice of instruction set.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu_features.h"
#include "float_mode.h"
#include "nearest_code_cpu.h"
#include "nearest_code_layout.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kPanel = 96;  // rows of z that one task screens: with one block of codes they stay in the L1 cache

const NearestCodeKernels& kernels_for(Isa isa) {
#if defined(__x86_64__)
  switch (std::min(isa, best_isa())) {
    case Isa::avx512: return nearest_code_avx512;
    case Isa::avx2: return nearest_code_avx2;
    default: break;
  }
#endif
  return nearest_code_scalar;
}

float round_up(double value) {
  return std::nextafter(float(value), std::numeric_limits<float>::infinity());
}

// Marks every entry that equals one before it, so that ties between equal entries cost the search nothing.
void mark_repeats(PackedCodebook& codes) {
  const int64_t K = codes.K, D = codes.D;
  size_t capacity = 16;
  while (capacity < size_t(2 * K)) capacity *= 2;
  std::vector<int64_t> table(capacity, -1);
  for (int64_t k = 0; k < K; ++k) {
    const float* entry = codes.entries + k * D;
    uint64_t hash = 0x9e3779b97f4a7c15ull;
    for (int64_t d = 0; d < D; ++d) {
      uint32_t bits;
      std::memcpy(&bits, entry + d, sizeof bits);
      hash = (hash ^ bits) * 0xff51afd7ed558ccdull;
      hash ^= hash >> 29;
    }
    codes.marks[k] = 0;
    for (size_t slot = hash & (capacity - 1);; slot = (slot + 1) & (capacity - 1)) {
      const int64_t other = table[slot];
      if (other < 0) {
        table[slot] = k;
        break;
      }
      if (std::memcmp(codes.entries + other * D, entry, size_t(D) * sizeof(float)) == 0) {
        codes.marks[k] = kRepeats;
        codes.marks[other] |= kRepeated;
        break;
      }
    }
  }
}

void pack_block(PackedCodebook& codes, int64_t block) {
  const int64_t D = codes.D;
  for (int lane = 0; lane < kLanes; ++lane) {
    double largest = 0;
    for (int t = 0; t < kTiles; ++t) {
      const int64_t tile = block * kTiles + t, k = tile * kLanes + lane;
      const bool absent = k >= codes.K || (codes.marks[k] & kRepeats);
      codes.start[tile * kLanes + lane] =
          absent ? -std::numeric_limits<float>::infinity() : float(-0.5 * codes.norms[k]);
      if (!absent) largest = std::max(largest, codes.norms[k]);
    }
    codes.norm_bound[block * kLanes + lane] = round_up(std::sqrt(largest));
    codes.square_bound[block * kLanes + lane] = round_up(0.5 * largest);
  }
  for (int64_t tile = block * kTiles; tile < (block + 1) * kTiles; ++tile)
    for (int64_t d = 0; d < D; ++d)
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t k = tile * kLanes + lane;
        codes.tiles[(tile * D + d) * kLanes + lane] = k < codes.K ? codes.entries[k * D + d] : 0.0f;
      }
}

// Rows [begin, end) of z as float32 [end - begin, D]. A row that has no nearest code becomes zeros and is noted.
struct Rows {
  const void* z;
  DType dtype;
  int64_t D, stride_n, stride_d;

  enum class State : uint8_t { fine, nan, overflow };

  State read(int64_t row, float* out) const {
    double norm = 0;
    for (int64_t d = 0; d < D; ++d) {
      out[d] = load_as_float(z, row * stride_n + d * stride_d, dtype);
      norm += double(out[d]) * out[d];
    }
    if (norm <= std::numeric_limits<float>::max()) return State::fine;
    const bool nan = std::any_of(out, out + D, [](float x) { return x != x; });
    std::fill(out, out + D, 0.0f);
    return nan ? State::nan : State::overflow;
  }
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
  return cpu.avx512 ? Isa::avx512 : cpu.avx2 ? Isa::avx2 : Isa::scalar;
}

PackedCodebook::PackedCodebook(const void* base, int64_t K, int64_t D)
    : K(K), D(D), blocks((K + kBlock - 1) / kBlock), bytes(0) {
  char* const start_of_all = static_cast<char*>(const_cast<void*>(base));
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(start_of_all + bytes);
    bytes += (size_t(count) * sizeof(*pointer) + 63) / 64 * 64;
  };
  take(tiles, blocks * kBlock * D);
  take(start, blocks * kBlock);
  take(norm_bound, blocks * kLanes);
  take(square_bound, blocks * kLanes);
  take(entries, K * D);
  take(norms, K);
  take(marks, K);
  take(largest, 1);
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
  const int64_t chunk = std::max<int64_t>(1, (K + 63) / 64);
  parallel_for((K + chunk - 1) / chunk, threads, [&](int64_t part) {
    const FloatMode mode;
    for (int64_t k = part * chunk; k < std::min(K, (part + 1) * chunk); ++k) {
      double norm = 0;
      for (int64_t d = 0; d < D; ++d) {
        // Adding zero turns -0 into +0, so that equal entries have equal bytes.
        const float value = load_as_float(codebook, k * stride_k + d * stride_d, dtype) + 0.0f;
        codes.entries[k * D + d] = value;
        norm += double(value) * value;
      }
      codes.norms[k] = norm;
    }
  });
  double largest = 0;
  for (int64_t k = 0; k < K; ++k) {
    if (!(codes.norms[k] <= std::numeric_limits<float>::max())) return k;
    largest = std::max(largest, codes.norms[k]);
  }
  *codes.largest = std::sqrt(largest) * (1 + 0x1p-40);
  mark_repeats(codes);
  parallel_for(codes.blocks, threads, [&](int64_t block) {
    const FloatMode mode;
    pack_block(codes, block);
  });
  return -1;
}

int64_t nearest_code_cpu(const void* z, DType dtype, int64_t N, int64_t D, int64_t stride_n, int64_t stride_d,
                         const void* packed, int64_t K, int64_t* ids, float* margin, int threads, Isa isa) {
  if (N == 0) return -1;
  const PackedCodebook codes(packed, K, D);
  const NearestCodeKernels& kernels = kernels_for(isa);
  const Rows source{z, dtype, D, stride_n, stride_d};
  const int64_t stride = codes.blocks * kLanes;
  std::atomic<int64_t> overflow{std::numeric_limits<int64_t>::max()};

  const auto read = [&](int64_t begin, int64_t end, float* rows, Rows::State* states) {
    for (int64_t row = begin; row < end; ++row) {
      states[row - begin] = source.read(row, rows + (row - begin) * D);
      if (states[row - begin] != Rows::State::overflow) continue;
      for (int64_t seen = overflow; row < seen && !overflow.compare_exchange_weak(seen, row);) {
      }
    }
  };
  const auto decide = [&](int64_t row, const float* values, Rows::State state, const float* maxima) {
    NearestCode found{-1, std::numeric_limits<double>::quiet_NaN()};
    if (state == Rows::State::fine) found = kernels.rescore(values, codes, maxima, margin != nullptr);
    ids[row] = found.id;
    if (margin) margin[row] = float(found.margin);
  };

  const int64_t panels = (N + kPanel - 1) / kPanel;
  if (panels >= 2 * threads) {
    // Enough rows: each task screens and decides a panel with a buffer of its own.
    parallel_for(panels, threads, [&](int64_t panel) {
      const FloatMode mode;
      const int64_t begin = panel * kPanel, end = std::min(N, begin + kPanel);
      thread_local std::vector<float> rows, maxima;
      rows.resize(kPanel * D);
      maxima.resize(kPanel * stride);
      Rows::State states[kPanel];
      read(begin, end, rows.data(), states);
      kernels.screen(rows.data(), end - begin, codes, 0, codes.blocks, maxima.data());
      for (int64_t row = begin; row < end; ++row)
        decide(row, rows.data() + (row - begin) * D, states[row - begin], maxima.data() + (row - begin) * stride);
    });
  } else {
    // Few rows (one image has 32): the codebook is split as well, and the rows are decided when all maxima are there.
    const int64_t slices = std::min<int64_t>(codes.blocks, 4 * threads);
    std::unique_ptr<float[]> rows(new float[N * D]), maxima(new float[N * stride]);
    std::vector<Rows::State> states(N);
    {
      const FloatMode mode;
      read(0, N, rows.get(), states.data());
    }
    parallel_for(slices * panels, threads, [&](int64_t task) {
      const FloatMode mode;
      const int64_t slice = task % slices, begin = task / slices * kPanel, end = std::min(N, begin + kPanel);
      kernels.screen(rows.get() + begin * D, end - begin, codes, slice * codes.blocks / slices,
                     (slice + 1) * codes.blocks / slices, maxima.get() + begin * stride);
    });
    const int64_t chunk = 8;
    parallel_for((N + chunk - 1) / chunk, threads, [&](int64_t part) {
      const FloatMode mode;
      for (int64_t row = part * chunk; row < std::min(N, (part + 1) * chunk); ++row)
        decide(row, rows.get() + row * D, states[row], maxima.get() + row * stride);
    });
  }
  return overflow == std::numeric_limits<int64_t>::max() ? -1 : overflow.load();
}

}  // namespace seed_fast

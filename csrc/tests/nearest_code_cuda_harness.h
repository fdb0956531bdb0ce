// Runs the kernels of csrc/cuda/nearest_code*.cu on the host (device_host.h), and computes the expected ids and
// margins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "dtype.h"
#include "nearest_code.cu"
#include "nearest_code_pack.cu"
#include "nearest_code_sm70.cu"
#include "nearest_code_sm75.cu"

namespace seed_fast::nearest_code::testing {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr long long kPoison = -77;  // fills id buffers before a kernel runs

// A matrix of one of the dtypes with `gap` unused elements, which are NaN, between rows.
struct Matrix {
  int rows, columns, stride;
  DType dtype;
  std::vector<unsigned char> bytes;

  Matrix(int rows, int columns, DType dtype = DType::float32, int gap = 0)
      : rows(rows),
        columns(columns),
        stride(columns + gap),
        dtype(dtype),
        bytes(static_cast<std::size_t>(rows * stride - gap) * size(), 0xff) {}

  std::size_t size() const { return dtype == DType::float32 ? 4 : 2; }
  float operator()(int row, int column) const {
    return load_as_float(bytes.data(), static_cast<int64_t>(row) * stride + column, dtype);
  }
  // Stores the value truncated towards zero to the dtype. float16: magnitudes below the smallest normal become 0.
  void set(int row, int column, float value) {
    unsigned char* const at = &bytes[static_cast<std::size_t>(row * stride + column) * size()];
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (dtype == DType::float32) std::memcpy(at, &bits, 4);
    uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (dtype == DType::float16) {
      const uint32_t magnitude = bits & 0x7fffffff;
      const uint32_t normal = magnitude < 0x38800000 ? 0 : (magnitude - 0x38000000) >> 13;
      half = static_cast<uint16_t>((bits >> 16 & 0x8000) | (magnitude >= 0x7f800000 ? 0x7c00 : normal));
    }
    if (dtype != DType::float32) std::memcpy(at, &half, 2);
  }
};

inline Matrix random_matrix(int rows, int columns, unsigned seed, float scale = 1, DType dtype = DType::float32,
                            int gap = 0) {
  Matrix matrix(rows, columns, dtype, gap);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) matrix.set(r, c, scale * normal(random));
  }
  return matrix;
}

// The exact sign (-1, 0 or 1) of score(a) - score(b) for row `row`, where score(k) = ||e_k||^2 - 2 z.e_k. The
// difference is summed exactly as a floating-point expansion without zeros (Shewchuk 1997), whose last component is
// larger than all others together. It shares no code with the kernel.
inline int exact_order(const Matrix& z, int row, const Matrix& codes, int a, int b) {
  std::vector<double> sum;
  const auto add = [&](double x) {
    std::size_t kept = 0;
    for (const double component : sum) {
      const double total = x + component, part = total - x;
      const double error = (x - (total - part)) + (component - part);
      if (error != 0) sum[kept++] = error;
      x = total;
    }
    sum.resize(kept);
    if (x != 0) sum.push_back(x);
  };
  for (int d = 0; d < z.columns; ++d) {
    const double p = codes(a, d), q = codes(b, d), two_z = 2.0 * z(row, d);
    if (p == q) continue;
    for (double term : {p * p, -(q * q), -two_z * p, two_z * q}) add(term);
  }
  return sum.empty() ? 0 : sum.back() > 0 ? 1 : -1;
}

// ||e_k||^2 - 2 z.e_k in float64.
inline double score64(const Matrix& z, int row, const Matrix& codes, int k) {
  double score = 0;
  for (int d = 0; d < z.columns; ++d) score += codes(k, d) * (codes(k, d) - 2.0 * z(row, d));
  return score;
}

struct Result {
  std::vector<long long> ids;
  std::vector<float> margin;
};

// The largest magnitude that a score of this row can have; rounding errors of scores are proportional to it.
inline double magnitude64(const Matrix& z, int row, const Matrix& codes) {
  double z_norm = 0, code_norm = 0;
  for (int d = 0; d < z.columns; ++d) z_norm += static_cast<double>(z(row, d)) * z(row, d);
  for (int k = 0; k < codes.rows; ++k) {
    double norm = 0;
    for (int d = 0; d < z.columns; ++d) norm += static_cast<double>(codes(k, d)) * codes(k, d);
    code_norm = std::max(code_norm, norm);
  }
  return code_norm + 2 * std::sqrt(z_norm * code_norm);
}

// The definition: the code with the lowest score, the first of equal ones; the margin is the gap to the second lowest
// score in float64. Scores further apart than float64 rounding errors are compared in float64, all others exactly.
inline Result reference(const Matrix& z, const Matrix& codes) {
  Result result;
  std::vector<double> scores(static_cast<std::size_t>(codes.rows));
  for (int row = 0; row < z.rows; ++row) {
    const double clear = 1e-12 * magnitude64(z, row, codes);
    int best = 0;
    for (int k = 0; k < codes.rows; ++k) {
      scores[k] = score64(z, row, codes, k);
      const double gap = scores[k] - scores[best];
      if (k > 0 && (gap < -clear || (gap <= clear && exact_order(z, row, codes, k, best) < 0))) best = k;
    }
    double second = kInf;
    for (int k = 0; k < codes.rows; ++k) {
      if (k != best) second = std::min(second, scores[k]);
    }
    result.ids.push_back(best);
    result.margin.push_back(static_cast<float>(std::max(0.0, second - scores[best])));
  }
  return result;
}

// The instruction of the binary16 screen: m8n8k4, m16n8k8 or m16n8k16.
enum class Cores { sm70, sm75, sm80 };

struct Options {
  Cores cores = Cores::sm70;
  int wanted_blocks = 1;  // with more blocks than rows need, the codebook is split into shares
  unsigned seed = 0;      // order of threads, see device_host.h
};

// Everything that a search leaves in memory.
struct Search {
  std::vector<unsigned char> packed;
  std::vector<Partial> half,
      single;                    // results of the binary16 screen, [shares, N], and float32 screen, [shares, listed]
  std::vector<unsigned> listed;  // rows that the binary16 screen could not decide
  Result result;

  const PackedHeader& header() const { return *reinterpret_cast<const PackedHeader*>(packed.data()); }
  // The number of rows that the float32 screen left with more than two groups, which are scanned code by code. Only
  // valid if the screen ran in one share.
  int scanned() const {
    return static_cast<int>(std::count_if(single.begin(), single.end(),
                                          [](const Partial& found) { return !(found.upper[2] < found.lower); }));
  }
};

// Runs the three packing kernels, as the launcher does.
inline std::vector<unsigned char> pack(const Matrix& codes, Options options = {}) {
  using device::host::launch;
  const int k = codes.rows, d = codes.columns, tiles = code_tiles(k), dtype = static_cast<int>(codes.dtype);
  const int fragments = options.cores == Cores::sm70 ? kSm70 : kSm75;
  const PackedLayout layout(k, d);
  std::vector<unsigned char> packed(static_cast<std::size_t>(layout.bytes), 0xff);  // NaN wherever nothing is written
  const void* const from = codes.bytes.data();
  launch(padded_dim(d), 1, kThreads, options.seed,
         [&] { pack_center_kernel(from, dtype, k, d, codes.stride, packed.data()); });
  launch(tiles, 1, kThreads, options.seed,
         [&] { pack_entries_kernel(from, dtype, k, d, codes.stride, packed.data()); });
  launch(tiles, 1, kThreads, options.seed, [&] { pack_screen_kernel(k, d, fragments, packed.data()); });
  return packed;
}

// Packs the codebook and runs the kernels of a search, as the launcher does. Fails if a kernel writes beyond the ids,
// or if the kernel that computes margins gives other ids.
inline Search search(const Matrix& z, const Matrix& codes, Options options = {}) {
  using device::host::launch;
  const int d = z.columns, k = codes.rows, n = z.rows, dtype = static_cast<int>(z.dtype);
  constexpr int kWarps = kThreads / device::kWarp;
  const int warps = (n - 1) / kWarps + 1, wanted = options.wanted_blocks;
  const void* const from = z.bytes.data();
  const Partial poison{kNan, {kNan, kNan, kNan}, {-1, -1}};
  Search done;
  done.packed = pack(codes, options);
  const unsigned char* const packed = done.packed.data();

  // Screen all rows in binary16.
  const Plan plan(n, k, wanted);
  done.half.assign(static_cast<std::size_t>(plan.shares * n), poison);
  launch(static_cast<int>(plan.blocks()), 1, kThreads, options.seed, [&] {
    Partial* const out = done.half.data();
    const Rows rows{from, dtype, n, z.stride};
    switch (options.cores) {
      case Cores::sm70: nearest_code_fwd_sm70_kernel(from, dtype, n, d, z.stride, packed, k, wanted, out); break;
      case Cores::sm75: screen_half<MmaSm75<false>>(rows, Codes(packed, k, d), wanted, out); break;
      case Cores::sm80: nearest_code_fwd_sm75_kernel(from, dtype, n, d, z.stride, packed, k, wanted, out); break;
    }
  });

  // Decide the rows for which the screen left at most two groups of codes, and list the others.
  unsigned count = 0;
  done.listed.assign(static_cast<std::size_t>(n), ~0u);
  done.result.ids.assign(static_cast<std::size_t>(n + 1), kPoison);
  long long* const ids = done.result.ids.data();
  launch(warps, 1, kThreads, options.seed, [&] {
    nearest_code_finish_kernel(from, dtype, n, d, z.stride, packed, k, plan.shares, done.half.data(), &count,
                               done.listed.data(), ids);
  });
  // Screen the listed rows in float32, and decide them; where float32 is not enough, the kernel scans all codes.
  const Workspace workspace(n, wanted);
  done.single.assign(static_cast<std::size_t>(workspace.blocks * kBlockRows), poison);
  launch(static_cast<int>(workspace.blocks), 1, kThreads, options.seed, [&] {
    nearest_code_fwd_rows_kernel(from, dtype, d, z.stride, packed, k, wanted, &count, done.listed.data(),
                                 done.single.data());
  });
  launch(warps, 1, kThreads, options.seed, [&] {
    nearest_code_finish_rows_kernel(from, dtype, d, z.stride, packed, k, wanted, &count, done.listed.data(),
                                    done.single.data(), ids);
  });
  done.listed.resize(count);
  done.single.resize(static_cast<std::size_t>(Plan(count, k, wanted).shares) * count);
  CHECK_EQUAL(done.result.ids.back(), kPoison);
  done.result.ids.pop_back();

  // Run the kernel that computes ids and margins without a screen.
  std::vector<long long> again(static_cast<std::size_t>(n), kPoison);
  done.result.margin.assign(static_cast<std::size_t>(n), -7.0f);
  launch(warps, 1, kThreads, options.seed, [&] {
    nearest_code_margin_kernel(from, dtype, n, d, z.stride, packed, k, again.data(), done.result.margin.data());
  });
  CHECK(done.result.ids == again);
  return done;
}

}  // namespace seed_fast::nearest_code::testing

// nearest_code on the CPU: division of the work among threads, choice of the instruction set, and exact comparison.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "cpu_features.h"
#include "exact_sum.h"
#include "float_mode.h"
#include "nearest_code_cpu.h"
#include "nearest_code_layout.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kPanel = 96;  // rows of z that one task screens; they fit into the L1 cache with one block of codes

// A search. Rows of z are read (converted to float32), screened against all blocks of codes, and decided. A row without
// a nearest code, because of NaN or overflow, is replaced by zeros for the screen.
class Search {
 public:
  enum class State : uint8_t { fine, nan, overflow };

  // Consecutive rows, in the forms that the kernels need.
  struct Buffers {
    std::vector<float> rows, centered, maxima;
    std::vector<uint32_t> pairs;
    std::vector<double> spreads;
    std::vector<State> states;
  };

  // Where the results are written; null for those that are not wanted.
  struct Outputs {
    int64_t* ids;     // [N]
    float* margin;    // [N]
    void* z_q;        // [N, D] of z's type
    double* squares;  // [N] ||e - z||^2
  };

  Search(const void* z, DType dtype, int64_t stride_n, int64_t stride_d, const PackedCodebook& codes,
         const NearestCodeKernels& kernels, const Outputs& out)
      : z_(z),
        dtype_(dtype),
        stride_n_(stride_n),
        stride_d_(stride_d),
        codes_(codes),
        kernels_(kernels),
        pairs_(kernels.pairs == codes.summary->pairs ? kernels.pairs : PairType::none),
        out_(out) {}

  // Finds all rows' codes. Returns the first row whose squared norm overflows float32, or -1.
  int64_t run(int64_t N, int threads);

  // Reads rows [begin, end) of z into the buffers.
  void read(int64_t begin, int64_t end, Buffers& out) {
    const int64_t D = codes_.D, count = end - begin;
    out.rows.resize(count * D);
    out.centered.resize(count * D);
    out.maxima.resize(count * codes_.blocks * kLanes);
    out.spreads.resize(count);
    out.states.resize(count);
    const bool paired = pairs_ != PairType::none;
    if (paired) out.pairs.resize(count * codes_.pairs);
    for (int64_t i = 0; i < count; ++i) {
      float* row = out.rows.data() + i * D;
      out.states[i] = read_row(begin + i, row);
      float* centered = out.centered.data() + i * D;
      out.spreads[i] = center_row(row, codes_, centered);
      if (paired) pair_row(centered, D, pairs_, integer_step(out.spreads[i]), out.pairs.data() + i * codes_.pairs);
    }
  }

  // Screens rows [first, last) of the buffers against blocks [begin, end).
  void screen(Buffers& buffers, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    float* maxima = buffers.maxima.data() + first * codes_.blocks * kLanes;
    if (pairs_ != PairType::none) {
      kernels_.screen_pairs(buffers.pairs.data() + first * codes_.pairs, buffers.spreads.data() + first, last - first,
                            codes_, begin, end, maxima);
    } else {
      kernels_.screen(buffers.centered.data() + first * codes_.D, last - first, codes_, begin, end, maxima);
    }
  }

  // Finds the code of row i of the buffers, after all blocks were screened, and writes the results of row `at` of z.
  void decide(const Buffers& buffers, int64_t i, int64_t at) const {
    NearestCode found{-1, std::numeric_limits<double>::quiet_NaN()};
    if (buffers.states[i] == State::fine) {
      const Row row{buffers.rows.data() + i * codes_.D, buffers.maxima.data() + i * codes_.blocks * kLanes,
                    buffers.spreads[i], pairs_, out_.margin != nullptr};
      found = kernels_.rescore(row, codes_);
    }
    out_.ids[at] = found.id;
    if (out_.margin) out_.margin[at] = float(found.margin);
    if (out_.z_q) quantize(at, found.id, buffers.rows.data() + i * codes_.D);
  }

  // The first row whose squared norm overflows float32, or -1.
  int64_t overflow() const { return overflow_ == std::numeric_limits<int64_t>::max() ? -1 : overflow_.load(); }

 private:
  // Writes z_q and the squared distance of row `at`; NaN for id -1.
  void quantize(int64_t at, int64_t id, const float* row) const {
    double square = 0;
    for (int64_t d = 0; d < codes_.D; ++d) {
      const float value = id < 0 ? std::numeric_limits<float>::quiet_NaN() : codes_.entries[id * codes_.D + d];
      const double difference = double(value) - row[d];
      square += difference * difference;
      store_from_float(out_.z_q, at * codes_.D + d, dtype_, value);
    }
    out_.squares[at] = square;
  }

  // Reads a row as float32 and checks it; records the first row that overflows.
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
  PairType pairs_;
  Outputs out_;
  std::atomic<int64_t> overflow_{std::numeric_limits<int64_t>::max()};
};

int64_t Search::run(int64_t N, int threads) {
  const int64_t panels = (N + kPanel - 1) / kPanel;
  if (panels >= 2 * threads) {
    // Many rows: each task screens and decides a panel of rows, with buffers of its own.
    parallel_for(panels, threads, [&](int64_t panel) {
      const FloatMode mode;
      thread_local Buffers buffers;
      const int64_t begin = panel * kPanel, end = std::min(N, begin + kPanel);
      read(begin, end, buffers);
      screen(buffers, 0, end - begin, 0, codes_.blocks);
      for (int64_t row = begin; row < end; ++row) decide(buffers, row - begin, row);
    });
  } else if (N > 0) {
    // Few rows (one image has 32): tasks screen a panel against a part of the codebook. When all are done, the rows are
    // decided.
    const int64_t slices = std::min<int64_t>(codes_.blocks, 4 * threads);
    constexpr int64_t chunk = 8;
    Buffers buffers;
    {
      const FloatMode mode;
      read(0, N, buffers);
    }
    parallel_for(slices * panels, threads, [&](int64_t task) {
      const FloatMode mode;
      const int64_t slice = task % slices, first = task / slices * kPanel;
      screen(buffers, first, std::min(N, first + kPanel), slice * codes_.blocks / slices,
             (slice + 1) * codes_.blocks / slices);
    });
    parallel_for((N + chunk - 1) / chunk, threads, [&](int64_t part) {
      const FloatMode mode;
      for (int64_t row = part * chunk; row < std::min(N, (part + 1) * chunk); ++row) decide(buffers, row, row);
    });
  }
  return overflow();
}

// score(a) - score(b) exactly: the sum over dimensions of a^2 - b^2 - 2 z a + 2 z b. Equal elements contribute 0.
ExactSum exact_difference(const float* z, const PackedCodebook& codes, int64_t a, int64_t b) {
  const float *a_entry = codes.entries + a * codes.D, *b_entry = codes.entries + b * codes.D;
  ExactSum difference;
  for (int64_t d = 0; d < codes.D; ++d) {
    const uint32_t a_bits = float_to_bits(a_entry[d]), b_bits = float_to_bits(b_entry[d]);
    if (a_bits != b_bits) difference.add_difference(float_to_bits(z[d]), a_bits, b_bits);
  }
  return difference;
}

}  // namespace

Isa best_isa() {
  const CpuFeatures& cpu = cpu_features();
  return cpu.avx512_bf16 ? Isa::avx512bf16 : cpu.avx512 ? Isa::avx512 : cpu.avx2 ? Isa::avx2 : Isa::scalar;
}

Isa parse_isa(const std::string& name) {
  if (name.empty() || name == "avx512bf16") return Isa::avx512bf16;
  if (name == "avx512") return Isa::avx512;
  if (name == "avx2") return Isa::avx2;
  if (name == "scalar") return Isa::scalar;
  throw std::invalid_argument("SEED_FAST_CPU_ISA: expected scalar, avx2, avx512 or avx512bf16, got '" + name + "'");
}

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

bool nearest_code_exactly_before(const float* z, const PackedCodebook& codes, int64_t a, int64_t b) {
  const int sign = exact_difference(z, codes, a, b).sign();
  return sign != 0 ? sign < 0 : a < b;
}

double nearest_code_exact_gap(const float* z, const PackedCodebook& codes, int64_t best, int64_t second) {
  return exact_difference(z, codes, second, best).value();
}

int64_t nearest_code_cpu(const void* z, DType dtype, int64_t N, int64_t D, int64_t stride_n, int64_t stride_d,
                         const void* packed, int64_t K, int64_t* ids, float* margin, int threads, Isa isa) {
  const PackedCodebook codes(packed, K, D);
  Search search(z, dtype, stride_n, stride_d, codes, kernels_for(isa), {ids, margin, nullptr, nullptr});
  return search.run(N, threads);
}

int64_t vector_quantize_cpu(const void* z, DType dtype, int64_t N, int64_t D, int64_t stride_n, int64_t stride_d,
                            const void* packed, int64_t K, void* z_q, int64_t* ids, double* squares, int threads,
                            Isa isa) {
  const PackedCodebook codes(packed, K, D);
  Search search(z, dtype, stride_n, stride_d, codes, kernels_for(isa), {ids, nullptr, z_q, squares});
  return search.run(N, threads);
}

}  // namespace seed_fast

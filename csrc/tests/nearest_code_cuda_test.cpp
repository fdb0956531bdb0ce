// The kernels of csrc/cuda/nearest_code.cu, executed on the host (device_host.h) against an exact reference.
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
#include "nearest_code_plan.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::nearest_code;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr long long kPoison = -77;

// A matrix of one of the dtypes with a row stride; the gaps between rows hold NaN.
struct Matrix {
  int rows, columns, stride;
  DType dtype;
  std::vector<unsigned char> bytes;

  Matrix(int rows, int columns, DType dtype = DType::float32, int gap = 0)
      : rows(rows), columns(columns), stride(columns + gap), dtype(dtype),
        bytes(static_cast<std::size_t>(rows * stride - gap) * size(), 0xff) {}

  std::size_t size() const { return dtype == DType::float32 ? 4 : 2; }
  float operator()(int row, int column) const {
    return load_as_float(bytes.data(), static_cast<int64_t>(row) * stride + column, dtype);
  }
  // Truncates to the dtype; halves only in the range of normal halves.
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

Matrix random_matrix(int rows, int columns, unsigned seed, float scale = 1, DType dtype = DType::float32, int gap = 0) {
  Matrix matrix(rows, columns, dtype, gap);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) matrix.set(r, c, scale * normal(random));
  }
  return matrix;
}

// Sign of score(a) - score(b) from a floating-point expansion (Shewchuk 1997), which shares nothing with the kernel.
int exact_order(const Matrix& z, int row, const Matrix& codes, int a, int b) {
  std::vector<double> sum;
  const auto add = [&](double x) {
    std::vector<double> next;
    for (double component : sum) {
      const double total = x + component, part = total - x;
      const double error = (x - (total - part)) + (component - part);
      if (error != 0) next.push_back(error);
      x = total;
    }
    next.push_back(x);
    sum = next;
  };
  for (int d = 0; d < z.columns; ++d) {
    const double p = codes(a, d), q = codes(b, d), two_z = 2.0 * z(row, d);
    for (double term : {p * p, -(q * q), -two_z * p, two_z * q}) add(term);
  }
  return (sum.back() > 0) - (sum.back() < 0);
}

double score64(const Matrix& z, int row, const Matrix& codes, int k) {
  double score = 0;
  for (int d = 0; d < z.columns; ++d) score += codes(k, d) * (codes(k, d) - 2.0 * z(row, d));
  return score;
}

struct Result {
  std::vector<long long> ids;
  std::vector<float> margin;
};

double magnitude64(const Matrix& z, int row, const Matrix& codes) {
  double z_norm = 0, code_norm = 0;
  for (int d = 0; d < z.columns; ++d) z_norm += static_cast<double>(z(row, d)) * z(row, d);
  for (int k = 0; k < codes.rows; ++k) {
    double norm = 0;
    for (int d = 0; d < z.columns; ++d) norm += static_cast<double>(codes(k, d)) * codes(k, d);
    code_norm = std::max(code_norm, norm);
  }
  return code_norm + 2 * std::sqrt(z_norm * code_norm);
}

// The definition. Scores further apart than any float64 rounding are compared in float64, all others exactly.
Result reference(const Matrix& z, const Matrix& codes) {
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

struct Options {
  int block_rows = 64, tiles_per_block = 1 << 20;
  unsigned seed = 0;
  bool margin = true;
};

struct Search {
  std::vector<unsigned char> packed;
  std::vector<Partial> partials;
  Result result;

  const PackedHeader& header() const { return *reinterpret_cast<const PackedHeader*>(packed.data()); }
};

Search search(const Matrix& z, const Matrix& codes, Options options = {}) {
  using device::host::launch;
  const int d = z.columns, k = codes.rows, tiles = code_tiles(k);
  const int n = z.rows, shares = (tiles - 1) / std::min(tiles, options.tiles_per_block) + 1;
  Search done;
  done.packed.assign(static_cast<std::size_t>(PackedLayout(k, d).bytes), 0xff);
  unsigned char* const packed = done.packed.data();
  launch(tiles, 1, kThreads, options.seed, [&] {
    pack_codebook_kernel(codes.bytes.data(), static_cast<int>(codes.dtype), k, d, codes.stride, packed);
  });
  done.partials.assign(static_cast<std::size_t>(shares * n), Partial{kNan, kNan, -1});
  launch((n - 1) / options.block_rows + 1, shares, kThreads, options.seed, [&] {
    (options.block_rows == 64 ? nearest_code_fwd_kernel : nearest_code_fwd_rows32_kernel)(
        z.bytes.data(), static_cast<int>(z.dtype), n, d, z.stride, packed, k, options.tiles_per_block,
        done.partials.data());
  });
  done.result.ids.assign(static_cast<std::size_t>(n + 1), kPoison);
  done.result.margin.assign(static_cast<std::size_t>(n), -7.0f);
  const int warps = kThreads / device::kWarp;
  launch((n - 1) / warps + 1, 1, kThreads, options.seed, [&] {
    nearest_code_finish_kernel(z.bytes.data(), static_cast<int>(z.dtype), n, d, z.stride, packed, k, shares,
                               done.partials.data(), done.result.ids.data(),
                               options.margin ? done.result.margin.data() : nullptr);
  });
  CHECK_EQUAL(done.result.ids.back(), kPoison);
  done.result.ids.pop_back();
  return done;
}

// Ids are exact; margins are within float32 rounding of the scores.
void check_search(const Matrix& z, const Matrix& codes, Options options = {}) {
  const Result expected = reference(z, codes), got = search(z, codes, options).result;
  for (int row = 0; row < z.rows; ++row) {
    CHECK_EQUAL(got.ids[row], expected.ids[row]);
    const double budget = (z.columns + 4) * 0x1p-22 * magnitude64(z, row, codes) + 1e-36;
    CHECK(codes.rows == 1 ? got.margin[row] == kInf : std::abs(got.margin[row] - expected.margin[row]) <= budget);
  }
}

// How many rows plain float32 gets wrong: that a problem is hard enough to test anything.
int float32_mistakes(const Matrix& z, const Matrix& codes) {
  const Search done = search(z, codes);
  const Result expected = reference(z, codes);
  int mistakes = 0;
  for (int row = 0; row < z.rows; ++row) mistakes += done.partials[row].index != expected.ids[row];
  return mistakes;
}

TEST(ids_are_exact_for_odd_sizes) {
  const struct { int n, k, d; } sizes[] = {{1, 1, 1},    {31, 300, 1},  {257, 129, 1},  {32, 128, 8},  {33, 127, 31},
                                           {257, 300, 32}, {32, 1, 32},  {1, 1000, 32},  {33, 257, 33}, {31, 130, 64},
                                           {65, 64, 100}, {33, 129, 256}, {257, 2, 256}};
  for (const auto& size : sizes) {
    const Matrix z = random_matrix(size.n, size.d, 1), codes = random_matrix(size.k, size.d, 2);
    check_search(z, codes);
    check_search(z, codes, {32, 1, 3, true});
  }
}

TEST(every_pair_of_dtypes_and_row_strides) {
  unsigned seed = 10;
  for (DType z_type : {DType::float32, DType::float16, DType::bfloat16}) {
    for (DType code_type : {DType::float32, DType::float16, DType::bfloat16}) {
      const Matrix z = random_matrix(37, 40, ++seed, 1, z_type, 5);
      check_search(z, random_matrix(200, 40, ++seed, 1, code_type, 3));
    }
  }
}

TEST(shares_of_the_codebook_and_block_sizes_give_one_result) {
  const Matrix z = random_matrix(70, 32, 5), codes = random_matrix(700, 32, 6);
  const Result whole = search(z, codes).result;
  for (int block_rows : {32, 64}) {
    for (int tiles : {1, 2, 5, 6}) {
      const Result got = search(z, codes, {block_rows, tiles, 0, true}).result;
      CHECK(got.ids == whole.ids);
      CHECK(got.margin == whole.margin);
    }
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  const Matrix z = random_matrix(40, 70, 7);
  Matrix codes = random_matrix(300, 70, 8);
  for (int d = 0; d < 70; ++d) codes.set(250, d, codes(20, d));
  const Result expected = search(z, codes).result;
  for (unsigned seed = 1; seed <= 8; ++seed) {
    const Result got = search(z, codes, {64, 2, seed, true}).result;
    CHECK(got.ids == expected.ids);
    CHECK(got.margin == expected.margin);
  }
}

TEST(margin_is_optional) {
  const Search done = search(random_matrix(5, 8, 1), random_matrix(9, 8, 2), {64, 1, 0, false});
  CHECK(done.result.margin == std::vector<float>(5, -7.0f));
  CHECK(done.result.ids == reference(random_matrix(5, 8, 1), random_matrix(9, 8, 2)).ids);
}

TEST(duplicated_codes_give_the_lowest_index_and_margin_zero) {
  const Matrix z = random_matrix(33, 32, 11);
  Matrix codes = random_matrix(400, 32, 12);
  for (int k = 200; k < 400; ++k) {
    for (int d = 0; d < 32; ++d) codes.set(k, d, codes(399 - k, d));
  }
  check_search(z, codes, {64, 1, 0, true});
  for (float margin : search(z, codes).result.margin) CHECK_EQUAL(margin, 0.0f);
  Matrix same(300, 32);
  for (int k = 0; k < 300; ++k) {
    for (int d = 0; d < 32; ++d) same.set(k, d, codes(0, d));
  }
  CHECK(search(z, same).result.ids == std::vector<long long>(33, 0));
}

TEST(collapsed_codebook_of_neighbouring_floats_stays_exact) {
  for (int d : {8, 32, 64}) {
    const Matrix z = random_matrix(33, d, 21);
    Matrix codes = random_matrix(300, d, 22);
    std::mt19937 random(23);
    for (int k = 1; k < 300; ++k) {
      for (int i = 0; i < d; ++i) codes.set(k, i, std::nextafter(codes(0, i), random() % 2 ? kInf : -kInf));
    }
    CHECK(float32_mistakes(z, codes) > 10);
    check_search(z, codes, {32, 1, 0, true});
  }
}

TEST(gaps_that_float64_cannot_see_are_decided) {
  // With z = (1, t) and codes (1, 0), (1, s): score(1) - score(0) = s^2 - 2 s t, at a score of about -1.
  const float s = 0x1p-60f;
  const struct { float t; long long id; } cases[] = {{0, 0}, {s, 1}, {s / 2, 0}, {std::nextafter(s / 2, 1.0f), 1},
                                                    {std::nextafter(s / 2, 0.0f), 0}, {-s, 0}};
  for (const auto& c : cases) {
    for (bool swapped : {false, true}) {
      Matrix z(1, 2), codes(2, 2);
      z.set(0, 0, 1), z.set(0, 1, c.t);
      for (int k : {0, 1}) codes.set(k, 0, 1), codes.set(k, 1, k == swapped ? 0 : s);
      const bool tie = c.t == s / 2;
      CHECK_EQUAL(search(z, codes).result.ids[0], tie ? 0 : swapped ? 1 - c.id : c.id);
      CHECK_EQUAL(reference(z, codes).ids[0], tie ? 0 : swapped ? 1 - c.id : c.id);
    }
  }
}

TEST(exact_ties_between_different_codes_give_the_lowest_index) {
  Matrix z(33, 8), codes(256, 8);  // the corners of a cube, all equally far from points with zeros
  std::mt19937 random(31);
  for (int k = 0; k < 256; ++k) {
    for (int d = 0; d < 8; ++d) codes.set(255 - k, d, k >> d & 1 ? 0.1f : -0.1f);
  }
  for (int row = 0; row < 33; ++row) {
    for (int d = 0; d < 8; ++d) z.set(row, d, static_cast<float>(static_cast<int>(random() % 3) - 1) * 0.7f);
  }
  check_search(z, codes, {32, 1, 0, true});
  CHECK_EQUAL(search(Matrix(random_matrix(1, 8, 1, 0)), codes).result.ids[0], 0);
}

TEST(magnitudes_from_subnormal_to_the_edge_of_overflow) {
  for (float scale : {1e-43f, 1e-38f, 1e-30f, 1e-22f, 1e-20f, 1e-10f, 1e10f, 1e18f}) {
    const Matrix z = random_matrix(33, 32, 41, scale), codes = random_matrix(200, 32, 42, scale);
    check_search(z, codes);
  }
  check_search(random_matrix(9, 32, 43, 1e-40f), random_matrix(200, 32, 44, 1e15f));
  check_search(random_matrix(9, 32, 45, 1e15f), random_matrix(200, 32, 46, 1e-40f));
  check_search(random_matrix(9, 32, 47, 1e18f), random_matrix(200, 32, 48, 1e-4f));
}

TEST(sums_that_overflow_on_the_way_are_still_decided) {
  // ||z||^2 and ||e||^2 are finite in float32, but 2 z.e and its partial sums are not.
  Matrix z = random_matrix(9, 4, 51, 0), codes = random_matrix(130, 4, 52, 0);
  const float big = 0x1.fp63f;
  for (int row = 0; row < 9; ++row) z.set(row, row % 4, row % 2 ? big : -big), z.set(row, (row + 1) % 4, 0x1p40f);
  for (int k = 0; k < 130; ++k) codes.set(k, k % 4, k % 3 ? big : -big), codes.set(k, (k + 1) % 4, 0x1p35f * k);
  check_search(z, codes);
  // The first code is the best by far, but adding its terms in turn passes the largest float32 and can't come back.
  const float side = 0x1.4p63f;
  Matrix corner(1, 2), pair(2, 2);
  corner.set(0, 0, -side), corner.set(0, 1, side);
  pair.set(0, 0, side), pair.set(0, 1, side), pair.set(1, 0, 0.8f * side), pair.set(1, 1, 0);
  CHECK_EQUAL(float32_mistakes(corner, pair), 1);
  check_search(corner, pair);
}

TEST(rows_without_a_finite_norm_get_no_id_and_leave_the_others_alone) {
  const Matrix codes = random_matrix(200, 32, 62);
  Matrix z = random_matrix(70, 32, 61);
  const Result expected = reference(z, codes);
  z.set(0, 0, kNan);
  z.set(17, 31, kInf);
  z.set(33, 5, -kInf);
  z.set(69, 16, 0x1p64f);
  const Result got = search(z, codes, {32, 1, 0, true}).result;
  for (int row = 0; row < 70; ++row) {
    const bool bad = row == 0 || row == 17 || row == 33 || row == 69;
    CHECK_EQUAL(got.ids[row], bad ? -1 : expected.ids[row]);
    CHECK_EQUAL(std::isnan(got.margin[row]), bad);
  }
}

TEST(code_without_a_finite_norm_is_reported_and_no_row_gets_an_id) {
  const Matrix z = random_matrix(9, 32, 71);
  CHECK_EQUAL(search(z, random_matrix(300, 32, 72)).header().bad_norm, ~0u);
  for (float value : {kNan, kInf, 0x1.1p64f}) {
    Matrix codes = random_matrix(300, 32, 72);
    codes.set(140, 3, value);
    codes.set(299, 31, value);
    const Search done = search(z, codes);
    CHECK_EQUAL(done.header().bad_norm, 140u);
    CHECK(done.result.ids == std::vector<long long>(9, -1));
    CHECK(std::isnan(done.result.margin[8]));
  }
}

TEST(float32_scores_keep_to_the_stated_bound) {
  for (int d : {1, 8, 32, 256}) {
    const Matrix z = random_matrix(64, d, 81), codes = random_matrix(256, d, 82);
    const Search done = search(z, codes);
    for (int row = 0; row < 64; ++row) {
      const double error = std::abs(done.partials[row].best - score64(z, row, codes, done.partials[row].index));
      CHECK(error <= (d + 2) * 0x1p-24 * magnitude64(z, row, codes));
    }
  }
}

TEST(plan_covers_the_codebook_within_linear_memory) {
  for (long long n : {1ll, 32ll, 33ll, 256ll, 8192ll, 65536ll, 1ll << 33}) {
    for (int k : {1, 128, 129, 8192, 1 << 20}) {
      for (int multiprocessors : {1, 80, 148}) {
        const Plan plan(n, k, multiprocessors);
        CHECK(static_cast<long long>(plan.shares) * plan.tiles_per_block >= code_tiles(k));
        CHECK(static_cast<long long>(plan.shares - 1) * plan.tiles_per_block < code_tiles(k));
        CHECK(plan.row_blocks * plan.block_rows >= n);
        CHECK(plan.workspace_bytes(n) <= static_cast<long long>(sizeof(Partial)) * (n + 64 * 12 * 2 * multiprocessors));
      }
    }
  }
}

}  // namespace

int main() { return check::run(); }

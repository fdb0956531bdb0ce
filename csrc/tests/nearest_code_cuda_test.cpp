// The kernels of csrc/cuda/nearest_code*.cu, executed on the host (device_host.h), against an exact reference.
#include "nearest_code_cuda_harness.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::nearest_code;
using namespace seed_fast::nearest_code::testing;

// Runs a search and compares with the reference: ids must be equal, margins within float64 rounding of the scores.
void check_search(const Matrix& z, const Matrix& codes, Options options = {}) {
  const Result expected = reference(z, codes), got = search(z, codes, options).result;
  for (int row = 0; row < z.rows; ++row) {
    CHECK_EQUAL(got.ids[row], expected.ids[row]);
    if (codes.rows == 1) {
      CHECK_EQUAL(got.margin[row], kInf);
      continue;
    }
    const double rounding = 0x1p-23 * expected.margin[row] + 0x1p-149;
    const double budget = rounding + (z.columns + 4) * 0x1p-50 * magnitude64(z, row, codes);
    CHECK(std::abs(got.margin[row] - expected.margin[row]) <= budget);
  }
}

TEST(ids_are_exact_for_odd_sizes) {
  const struct {
    int n, k, d;
  } sizes[] = {{1, 1, 1},    {31, 300, 1},  {65, 129, 1},  {32, 128, 8},  {33, 127, 31}, {65, 300, 32}, {32, 1, 32},
               {1, 600, 32}, {33, 257, 33}, {31, 130, 64}, {65, 64, 100}, {3, 129, 256}, {70, 2, 256}};
  int turn = 0;
  for (const auto& size : sizes) {
    const Matrix z = random_matrix(size.n, size.d, 1), codes = random_matrix(size.k, size.d, 2);
    const Cores cores = static_cast<Cores>(turn++ % 3);
    check_search(z, codes, {cores, turn % 2 ? 12 : 1, turn % 4 ? 0u : 3u});
  }
}

TEST(every_pair_of_dtypes_and_row_strides) {
  unsigned seed = 10;
  for (DType z_type : {DType::float32, DType::float16, DType::bfloat16}) {
    for (DType code_type : {DType::float32, DType::float16, DType::bfloat16}) {
      const Matrix z = random_matrix(37, 33, ++seed, 1, z_type, 5);
      check_search(z, random_matrix(120, 33, ++seed, 1, code_type, 3));
    }
  }
}

TEST(shares_of_the_codebook_and_tensor_cores_give_one_result) {
  const Matrix z = random_matrix(65, 32, 5), codes = random_matrix(260, 32, 6);
  const Result whole = search(z, codes).result;
  for (Cores cores : {Cores::sm70, Cores::sm75, Cores::sm80}) {
    for (int wanted : {5, 100}) {
      const Result got = search(z, codes, {cores, wanted, 0}).result;
      CHECK(got.ids == whole.ids);
      CHECK(got.margin == whole.margin);
    }
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  const Matrix z = random_matrix(20, 40, 7);
  Matrix codes = random_matrix(200, 40, 8);
  for (int d = 0; d < 40; ++d) codes.set(150, d, codes(20, d));
  const Result expected = search(z, codes).result;
  for (unsigned seed = 1; seed <= 4; ++seed) {
    const Result got = search(z, codes, {Cores::sm70, 3, seed}).result;
    CHECK(got.ids == expected.ids);
    CHECK(got.margin == expected.margin);
  }
}

TEST(duplicated_codes_give_the_lowest_index_and_margin_zero) {
  const Matrix z = random_matrix(33, 32, 11);
  Matrix codes = random_matrix(400, 32, 12);
  for (int k = 200; k < 400; ++k) {
    for (int d = 0; d < 32; ++d) codes.set(k, d, codes(399 - k, d));
  }
  check_search(z, codes, {Cores::sm75, 12, 0});
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
    CHECK(codes(0, 0) != codes(1, 0));
    check_search(z, codes, {Cores::sm70, 12, 0});
  }
}

TEST(gaps_that_float64_cannot_see_are_decided) {
  // With z = (1, t) and codes (1, 0), (1, s): score(1) - score(0) = s^2 - 2 s t, at a score of about -1.
  const float s = 0x1p-60f;
  const struct {
    float t;
    long long id;
  } cases[] = {{0, 0}, {s, 1}, {s / 2, 0}, {std::nextafter(s / 2, 1.0f), 1}, {std::nextafter(s / 2, 0.0f), 0}, {-s, 0}};
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
  check_search(z, codes, {Cores::sm70, 12, 0});
  CHECK_EQUAL(search(Matrix(random_matrix(1, 8, 1, 0)), codes).result.ids[0], 0);
}

TEST(exact_ties_that_float64_rounds_apart_give_the_lowest_index) {
  // Codes before kFirst are far away; all others are permutations of one code, which have the same distance to any z
  // whose elements are all equal, but float64 adds their terms in different orders.
  constexpr int kFirst = 37;
  Matrix z(3, 32), codes = random_matrix(250, 32, 32);
  std::mt19937 random(33);
  for (int k = 0; k < 250; ++k) {
    std::vector<float> values;
    for (int d = 0; d < 32; ++d) values.push_back(k < kFirst ? 9.0f : codes(kFirst, d));
    if (k > kFirst) std::shuffle(values.begin(), values.end(), random);
    for (int d = 0; d < 32; ++d) codes.set(k, d, values[d]);
  }
  for (int row = 0; row < 3; ++row) {
    for (int d = 0; d < 32; ++d) z.set(row, d, 0.3f * static_cast<float>(row - 1));
  }
  CHECK(score64(z, 0, codes, kFirst) != score64(z, 0, codes, kFirst + 1));
  CHECK(search(z, codes, {Cores::sm70, 12, 0}).result.ids == std::vector<long long>(3, kFirst));
  CHECK(reference(z, codes).ids == std::vector<long long>(3, kFirst));
}

// Two groups of codes have the same upper bound of the score and lie in different shares of the codebook.
TEST(two_groups_with_equal_bounds_are_both_examined) {
  for (int wanted : {2, 4, 12}) {
    for (Cores cores : {Cores::sm70, Cores::sm80}) {
      Matrix z = random_matrix(1, 2, 1, 0), codes = random_matrix(1025, 2, 1, 0);
      codes.set(0, 0, 1), codes.set(1024, 0, 1), codes.set(1024, 1, 0x1p-60f);
      z.set(0, 0, 1), z.set(0, 1, 0x1p-60f);
      CHECK_EQUAL(search(z, codes, {cores, wanted, 0}).result.ids[0], 1024);
    }
  }
  for (DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
    Matrix codes = random_matrix(4097, 2, 1, 0, dtype);
    const Matrix z = random_matrix(1, 2, 1, 0, dtype);
    for (int k = 0; k < 4097; ++k) codes.set(k, 1, k == 1024 || k == 4096 ? 0.0f : 50.0f);
    codes.set(1024, 0, 1), codes.set(4096, 0, -1);
    CHECK_EQUAL(search(z, codes, {Cores::sm70, 36, 0}).result.ids[0], 1024);
    codes.set(2048, 0, 1.25f), codes.set(2048, 1, 0);  // a third group, so that the second pass decides
    const Search done = search(z, codes, {Cores::sm70, 36, 0});
    CHECK_EQUAL(done.result.ids[0], 1024);
  }
}

TEST(magnitudes_from_subnormal_to_the_edge_of_overflow) {
  for (float scale : {1e-43f, 1e-38f, 1e-30f, 2e-23f, 1e-22f, 1e-20f, 1e-10f, 1e10f, 1e18f}) {
    const Matrix z = random_matrix(9, 32, 41, scale), codes = random_matrix(120, 32, 42, scale);
    check_search(z, codes);
  }
  check_search(random_matrix(9, 32, 43, 1e-40f), random_matrix(120, 32, 44, 1e15f));
  check_search(random_matrix(9, 32, 45, 1e15f), random_matrix(120, 32, 46, 1e-40f));
  check_search(random_matrix(9, 32, 47, 1e18f), random_matrix(120, 32, 48, 1e-4f));
}

TEST(sums_that_overflow_on_the_way_are_still_decided) {
  // ||z||^2 and ||e||^2 are finite in float32, but 2 z.e and its partial sums are not.
  Matrix z = random_matrix(9, 4, 51, 0), codes = random_matrix(130, 4, 52, 0);
  const float big = 0x1.fp63f;
  for (int row = 0; row < 9; ++row) z.set(row, row % 4, row % 2 ? big : -big), z.set(row, (row + 1) % 4, 0x1p40f);
  for (int k = 0; k < 130; ++k) codes.set(k, k % 4, k % 3 ? big : -big), codes.set(k, (k + 1) % 4, 0x1p35f * k);
  check_search(z, codes);
  // The first code is the best by far, but a partial sum of its float32 score overflows to infinity and stays there.
  const float side = 0x1.4p63f;
  Matrix corner(1, 2), pair(2, 2);
  corner.set(0, 0, -side), corner.set(0, 1, side);
  pair.set(0, 0, side), pair.set(0, 1, side), pair.set(1, 0, 0.8f * side), pair.set(1, 1, 0);
  check_search(corner, pair);
}

TEST(entries_too_far_apart_for_float32_are_still_found) {
  // All norms are finite in float32, but half the square of the first entry's distance from the others is not.
  Matrix z(4, 2), codes(140, 2);
  for (int k = 0; k < 140; ++k) {
    for (int d : {0, 1}) codes.set(k, d, k == 0 ? 0x1.4p63f : -0x1.4p63f + 0x1p45f * static_cast<float>(k * (d + 1)));
  }
  for (int row = 0; row < 4; ++row) {
    for (int d : {0, 1}) z.set(row, d, row % 2 ? 0x1.3p63f : -0x1.4p63f + 0x1p49f * static_cast<float>(row));
  }
  const std::vector<long long> ids = search(z, codes).result.ids;
  CHECK_EQUAL(ids[1], 0);
  CHECK(ids == reference(z, codes).ids);  // the margins are beyond float32
}

TEST(rows_without_a_finite_norm_get_no_id_and_leave_the_others_alone) {
  const Matrix codes = random_matrix(200, 32, 62);
  Matrix z = random_matrix(70, 32, 61);
  const Result expected = reference(z, codes);
  z.set(0, 0, kNan);
  z.set(17, 31, kInf);
  z.set(33, 5, -kInf);
  z.set(69, 16, 0x1p64f);
  const Result got = search(z, codes, {Cores::sm70, 12, 0}).result;
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

TEST(most_rows_are_decided_by_tensor_cores_and_the_others_by_float32) {
  const Matrix z = random_matrix(128, 32, 91), codes = random_matrix(2048, 32, 92);
  const Search done = search(z, codes);
  CHECK(done.listed.size() < 16);
  CHECK_EQUAL(done.scanned(), 0);
}

TEST(neither_distance_from_zero_nor_one_entry_far_away_costs_anything) {
  Matrix z = random_matrix(64, 32, 93), codes = random_matrix(512, 32, 94);
  const std::size_t before = search(z, codes).listed.size();
  for (int d = 0; d < 32; ++d) {
    for (int k = 0; k < 512; ++k) codes.set(k, d, codes(k, d) + 1000);
    for (int row = 0; row < 64; ++row) z.set(row, d, z(row, d) + 1000);
    codes.set(300, d, 1e6f);
  }
  CHECK(search(z, codes).listed.size() <= before + 4);
  check_search(z, codes);
}

TEST(a_codebook_of_copies_costs_no_scan) {
  const Matrix z = random_matrix(64, 32, 95);
  Matrix codes = random_matrix(640, 32, 96);
  for (int k = 64; k < 640; ++k) {
    for (int d = 0; d < 32; ++d) codes.set(k, d, codes(k % 64, d));
  }
  CHECK(search(z, codes).listed.size() < 8);
}

TEST(clusters_too_tight_for_a_screen_are_scanned) {
  const Matrix z = random_matrix(16, 32, 97, 100);
  Matrix codes = random_matrix(256, 32, 98);
  for (int k = 2; k < 256; ++k) {
    for (int d = 0; d < 32; ++d) codes.set(k, d, codes(k % 2, d) + (d == k % 32 ? 1e-6f * static_cast<float>(k) : 0));
  }
  const Search done = search(z, codes);
  CHECK_EQUAL(done.listed.size(), std::size_t{16});
  CHECK(done.scanned() > 8);
  check_search(z, codes);
}

}  // namespace

int main() { return check::run(); }

// Random tests of the kernels of csrc/cuda/nearest_code*.cu on ties and near ties, with the codebook split into any
// number of shares: ids against exact arithmetic, margins against float64. Without arguments it runs 25 small problems;
// `nearest_code_cuda_fuzz_test SEED SECONDS` runs larger ones for that long.
#include <chrono>
#include <cstdlib>

#include "nearest_code_cuda_harness.h"

namespace {

using namespace seed_fast;
using namespace seed_fast::nearest_code;
using namespace seed_fast::nearest_code::testing;

using Random = std::mt19937;

// A random one of the values.
int one_of(Random& random, std::initializer_list<int> values) { return values.begin()[random() % values.size()]; }

// Small integers, so that most scores tie.
void fill_with_integers(Random& random, Matrix& matrix) {
  const int levels = one_of(random, {1, 1, 2, 4});
  for (int r = 0; r < matrix.rows; ++r) {
    for (int c = 0; c < matrix.columns; ++c) {
      matrix.set(r, c, static_cast<float>(static_cast<int>(random() % static_cast<unsigned>(2 * levels + 1)) - levels));
    }
  }
}

// Elements of -1, 0 and 1, half of them multiplied by a tiny factor, one per row: 2^-30 .. 2^-120, or 2^-10 in float16.
// The large parts often cancel, and differences that float64 loses decide.
void fill_with_cancelling_parts(Random& random, Matrix& matrix) {
  const int lowest = matrix.dtype == DType::float16 ? 10 : 120;
  for (int r = 0; r < matrix.rows; ++r) {
    const float tiny = std::ldexp(1.0f, -std::min(30 + static_cast<int>(random() % 91), lowest));
    for (int c = 0; c < matrix.columns; ++c) {
      const float value = static_cast<float>(static_cast<int>(random() % 3) - 1);
      matrix.set(r, c, random() % 2 ? value : value * tiny);
    }
  }
}

void fill_with_normals(Random& random, Matrix& matrix) {
  std::normal_distribution<float> normal;
  for (int r = 0; r < matrix.rows; ++r) {
    for (int c = 0; c < matrix.columns; ++c) matrix.set(r, c, normal(random));
  }
}

void copy_row(const Matrix& from, int row, Matrix& to, int at) {
  for (int c = 0; c < from.columns; ++c) to.set(at, c, from(row, c));
}

// Keeps a random number of entries and overwrites all others with copies of them, so that most entries are duplicates;
// packing may miss some of them.
void repeat_entries(Random& random, Matrix& codes) {
  const int kept = 1 + static_cast<int>(random() % static_cast<unsigned>(codes.rows));
  for (int k = kept; k < codes.rows; ++k) copy_row(codes, static_cast<int>(random() % kept), codes, k);
}

// Moves all entries far away in the last dimension, except two to four at random places. Those few differ only in the
// signs of their elements, so they are equally far from z = 0 and the score bounds of their groups are equal too.
void leave_a_few(Random& random, Matrix& codes, Matrix& z) {
  for (int k = 0; k < codes.rows; ++k) {
    for (int c = 0; c < codes.columns; ++c) codes.set(k, c, c == codes.columns - 1 ? 50.0f : 0.0f);
  }
  const int few = one_of(random, {2, 2, 2, 3, 4});
  int k = 0;
  for (int i = 0; i < few; ++i) {
    // At a random index, or eight tiles after the previous one: in a share whose result is merged late with its own.
    k = random() % 2 ? (k + 8 * kTileCodes) % codes.rows
                     : static_cast<int>(random() % static_cast<unsigned>(codes.rows));
    codes.set(k, codes.columns - 1, 0);
    for (int c = 0; c + 1 < codes.columns; ++c) codes.set(k, c, random() % 2 ? 1.0f : -1.0f);
  }
  for (int row = 0; row < z.rows; ++row) {
    for (int c = 0; c < z.columns; ++c) z.set(row, c, 0);
    if (random() % 2) z.set(row, static_cast<int>(random() % static_cast<unsigned>(z.columns)), 0x1p-60f);
  }
}

// Draws a problem, runs it and compares with the reference: ids must be equal, margins within float64 rounding of the
// scores, and 0 where another code ties exactly. `small`: sizes for the test suite.
void check_problem(Random& random, bool small) {
  const DType dtypes[] = {DType::float32, DType::float16, DType::bfloat16};
  const int d = one_of(random, {1, 2, 3, 5, 8, 31, 32, 33, 64});
  const int k = small ? one_of(random, {1, 7, 129, 300, 1025, 1025, 1153, 1153, 2049})
                      : one_of(random, {1, 9, 128, 513, 1025, 1153, 2049, 4097, 5000, 8192});
  const int n = small ? one_of(random, {1, 2, 5, 33}) : one_of(random, {1, 2, 3, 5, 31, 32, 33, 64});
  Matrix codes(k, d, dtypes[random() % 3], static_cast<int>(random() % 3));
  Matrix z(n, d, dtypes[random() % 3], static_cast<int>(random() % 3));
  // Fill both matrices, then duplicate entries, put some rows exactly on an entry, and set up ties of few candidates.
  const int kind = static_cast<int>(random() % 4);
  if (kind < 2) fill_with_integers(random, codes), fill_with_integers(random, z);
  if (kind == 2) fill_with_cancelling_parts(random, codes), fill_with_cancelling_parts(random, z);
  if (kind == 3) fill_with_normals(random, codes), fill_with_normals(random, z);
  if (random() % 2) repeat_entries(random, codes);
  for (int row = 0; row < n; ++row) {
    if (random() % 4 == 0) copy_row(codes, static_cast<int>(random() % static_cast<unsigned>(k)), z, row);
  }

  if (random() % 3) leave_a_few(random, codes, z);

  // Run with random tensor cores, number of shares and order of threads, and compare.
  const Cores cores[] = {Cores::sm70, Cores::sm75, Cores::sm80};
  const int wanted = small ? one_of(random, {1, 2, 3, 12, 12, 36}) : one_of(random, {1, 2, 3, 5, 12, 24, 60, 120});
  const Options options{cores[random() % 3], wanted, static_cast<unsigned>(random() % 9)};
  const Result expected = reference(z, codes), got = search(z, codes, options).result;
  for (int row = 0; row < n; ++row) {
    CHECK_EQUAL(got.ids[row], expected.ids[row]);
    if (k == 1) {
      CHECK_EQUAL(got.margin[row], kInf);
      continue;
    }
    bool tied = false;
    for (int code = 0; code < k && !tied; ++code) {
      tied = code != expected.ids[row] && exact_order(z, row, codes, code, static_cast<int>(expected.ids[row])) == 0;
    }
    if (tied) CHECK_EQUAL(got.margin[row], 0.0f);
    const double rounding = 0x1p-22 * expected.margin[row] + 0x1p-149;
    CHECK(got.margin[row] >= 0);
    CHECK(std::abs(got.margin[row] - expected.margin[row]) <=
          rounding + (d + 4) * 0x1p-50 * magnitude64(z, row, codes));
  }
}

TEST(ties_and_near_ties_in_any_number_of_shares) {
  Random random(101);
  for (int i = 0; i < 25; ++i) check_problem(random, true);
}

// Runs random problems until the time is over; a failure prints seed and problem and exits.
void run_for(unsigned seed, double seconds) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  Random random(seed);
  int done = 0;
  for (; std::chrono::duration<double>(Clock::now() - begin).count() < seconds; ++done) {
    try {
      check_problem(random, false);
    } catch (const std::exception& error) {
      std::printf("seed %u, problem %d: %s\n", seed, done, error.what());
      std::exit(1);
    }
  }
  std::printf("%d problems\n", done);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return check::run();
  run_for(static_cast<unsigned>(std::atol(arguments[1])), std::atof(arguments[2]));
}

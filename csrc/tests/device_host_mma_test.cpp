// The emulated tensor cores of device_host.h: fragments filled by the formulas in device.h give the matrix product,
// fragments in the wrong lanes do not, and sums are truncated rather than rounded.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "device.h"

using namespace seed_fast;
using namespace seed_fast::device;

namespace {

struct Matrix {
  int rows, columns;
  std::vector<float> values;
  Matrix(int rows, int columns) : rows(rows), columns(columns), values(static_cast<std::size_t>(rows * columns)) {}
  float& operator()(int row, int column) { return values[static_cast<std::size_t>(row * columns + column)]; }
};

// Random integers of -30 .. 30: every product and sum of them is exact in binary16 and float32.
Matrix integers(int rows, int columns, unsigned seed) {
  Matrix matrix(rows, columns);
  std::mt19937 random(seed);
  for (float& value : matrix.values) value = static_cast<float>(static_cast<int>(random() % 61) - 30);
  return matrix;
}

// c + a b.
Matrix product(Matrix a, Matrix b, Matrix c) {
  for (int row = 0; row < a.rows; ++row) {
    for (int column = 0; column < b.columns; ++column) {
      for (int k = 0; k < a.columns; ++k) c(row, column) += a(row, k) * b(k, column);
    }
  }
  return c;
}

// True if m8n8k4 gives the four products of 8x4 by 4x8 matrices. Each lane takes the fragment of b that belongs to lane
// (own lane + wrong_lanes) % 32, so that any value but 0 must give a wrong product.
bool quad_pairs_multiply(bool row_major_b, int wrong_lanes, unsigned seed) {
  Matrix a[4] = {integers(8, 4, 1), integers(8, 4, 2), integers(8, 4, 3), integers(8, 4, 4)};
  Matrix b[4] = {integers(4, 8, 5), integers(4, 8, 6), integers(4, 8, 7), integers(4, 8, 8)};
  Matrix c = integers(8, 8, 9);
  Matrix out[4] = {c, c, c, c};
  host::launch(1, 1, kWarp, seed, [&] {
    const int lane = thread_index(), q = lane % 16 / 4, h = lane < 16 ? 0 : 4;
    const int other = (lane + wrong_lanes) % kWarp, other_h = other < 16 ? 0 : 4;
    unsigned a_part[2], b_part[2];
    float sum[8];
    for (int i = 0; i < 2; ++i) {
      a_part[i] = half_pair(a[q](lane % 4 + h, 2 * i), a[q](lane % 4 + h, 2 * i + 1));
      b_part[i] = row_major_b ? half_pair(b[q](other % 4, 2 * i + other_h), b[q](other % 4, 2 * i + 1 + other_h))
                              : half_pair(b[q](2 * i, other % 4 + other_h), b[q](2 * i + 1, other % 4 + other_h));
    }
    const auto row = [&](int i) { return lane % 2 + i / 2 % 2 * 2 + h; };
    const auto column = [&](int i) { return i / 4 * 4 + lane / 2 % 2 * 2 + i % 2; };
    for (int i = 0; i < 8; ++i) sum[i] = c(row(i), column(i));
    row_major_b ? mma_m8n8k4_row_row(sum, a_part, b_part) : mma_m8n8k4(sum, a_part, b_part);
    for (int i = 0; i < 8; ++i) out[q](row(i), column(i)) = sum[i];
  });
  for (int q = 0; q < 4; ++q) {
    if (out[q].values != product(a[q], b[q], c).values) return false;
  }
  return true;
}

// The same for m16n8k8 and m16n8k16; `depth` is 8 or 16.
bool warp_multiplies(int depth, int wrong_lanes) {
  Matrix a = integers(16, depth, 1), b = integers(depth, 8, 2), c = integers(16, 8, 3), out = c;
  host::launch(1, 1, kWarp, 0, [&] {
    const int lane = thread_index(), g = lane / 4, t = lane % 4, other_g = (lane + wrong_lanes) % kWarp / 4;
    const auto a_pair = [&](int row, int column) { return half_pair(a(row, column), a(row, column + 1)); };
    const auto b_pair = [&](int row) { return half_pair(b(row, other_g), b(row + 1, other_g)); };
    float sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = c(g + i / 2 * 8, 2 * t + i % 2);
    if (depth == 8) {
      const unsigned a_part[2] = {a_pair(g, 2 * t), a_pair(g + 8, 2 * t)};
      mma_m16n8k8(sum, a_part, b_pair(2 * t));
    } else {
      unsigned a_part[4], b_part[2] = {b_pair(2 * t), b_pair(2 * t + 8)};
      for (int i = 0; i < 4; ++i) a_part[i] = a_pair(g + i % 2 * 8, 2 * t + i / 2 * 8);
      mma_m16n8k16(sum, a_part, b_part);
    }
    for (int i = 0; i < 4; ++i) out(g + i / 2 * 8, 2 * t + i % 2) = sum[i];
  });
  return out.values == product(a, b, c).values;
}

// c + the sum of a[k] b[k], k < 4, as the emulated m8n8k4 computes it.
float accumulate(float c, const std::vector<float>& a, const std::vector<float>& b) {
  float result = 0;
  host::launch(1, 1, kWarp, 0, [&] {
    const unsigned a_part[2] = {half_pair(a[0], a[1]), half_pair(a[2], a[3])};
    const unsigned b_part[2] = {half_pair(b[0], b[1]), half_pair(b[2], b[3])};
    float sum[8] = {c, c, c, c, c, c, c, c};
    mma_m8n8k4(sum, a_part, b_part);
    if (thread_index() == 0) result = sum[0];
  });
  return result;
}

TEST(m8n8k4_is_the_matrix_product_only_with_fragments_in_their_lanes) {
  for (bool row_major_b : {false, true}) {
    for (unsigned seed : {0u, 1u, 2u}) CHECK(quad_pairs_multiply(row_major_b, 0, seed));
    for (int wrong : {1, 2, 16}) CHECK(!quad_pairs_multiply(row_major_b, wrong, 0));
  }
}

TEST(m16n8k8_and_m16n8k16_are_the_matrix_product_only_with_fragments_in_their_lanes) {
  for (int depth : {8, 16}) {
    CHECK(warp_multiplies(depth, 0));
    for (int wrong : {4, 8, 16}) CHECK(!warp_multiplies(depth, wrong));
  }
}

TEST(sums_are_truncated_where_float32_would_round) {
  CHECK_EQUAL(accumulate(1, {0x1.8p-12f, 0, 0, 0}, {0x1p-12f, 0, 0, 0}), 1.0f);
  CHECK_EQUAL(accumulate(0x1p24f, {1, 1, 1, 1}, {1, 1, 1, 1}), 0x1p24f);  // not 2^24 + 4: each 1 is truncated to 0
  CHECK_EQUAL(accumulate(-1, {0x1p-12f, 0, 0, 0}, {0x1p-12f, 0, 0, 0}), -1.0f);
  CHECK_EQUAL(accumulate(0, {0x1p-24f, 3, 0, 0}, {0x1p-24f, 0, 0, 0}), 0x1p-48f);  // subnormal binary16 is kept
}

TEST(sums_keep_to_the_bound_that_device_h_states) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<float> a, b;
    const float c = 30 * normal(random);
    double exact = c, magnitude = std::fabs(c);
    for (int i = 0; i < 4; ++i) {
      a.push_back(half_to_float(float_to_half(normal(random))));
      b.push_back(half_to_float(float_to_half(normal(random) * static_cast<float>(1 << (trial % 5 * 2)))));
      exact += static_cast<double>(a[i]) * b[i];
      magnitude += std::fabs(static_cast<double>(a[i]) * b[i]);
    }
    CHECK(std::fabs(accumulate(c, a, b) - exact) <= 6 * 0x1p-23 * magnitude);
  }
}

TEST(a_product_that_a_lane_skips_is_an_error) {
  std::string error;
  try {
    host::launch(1, 1, kWarp, 0, [] {
      const unsigned part[2] = {0, 0};
      float sum[8] = {};
      if (thread_index() != 9) mma_m8n8k4(sum, part, part);
    });
  } catch (const host::KernelError& caught) {
    error = caught.what();
  }
  CHECK(error.find("31 threads wait at the matrix product") != std::string::npos);
}

}  // namespace

int main() { return check::run(); }

// The kernels of csrc/cuda/vector_quantize.cu, executed on the host (device_host.h), against their formulas in float64.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "dtype.h"
#include "vector_quantize.cu"

namespace {

using namespace seed_fast;
using namespace seed_fast::vector_quantize;
using device::host::launch;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A matrix of one of the dtypes with `gap` unused elements, which are NaN, after each row.
struct Matrix {
  int rows, columns, stride;
  DType dtype;
  std::vector<unsigned char> bytes;

  Matrix(int rows, int columns, DType dtype, int gap = 0)
      : rows(rows),
        columns(columns),
        stride(columns + gap),
        dtype(dtype),
        bytes(static_cast<std::size_t>(rows * stride) * (dtype == DType::float32 ? 4 : 2), 0xff) {}
  int type() const { return static_cast<int>(dtype); }
  double operator()(int64_t row, int64_t column) const {
    return load_as_float(bytes.data(), row * stride + column, dtype);
  }
  void set(int row, int column, float value) { store_from_float(bytes.data(), row * stride + column, dtype, value); }
};

Matrix random_matrix(int rows, int columns, unsigned seed, DType dtype, int gap = 0) {
  Matrix matrix(rows, columns, dtype, gap);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) matrix.set(row, column, normal(random));
  }
  return matrix;
}

// The value rounded to the dtype.
double rounded(double value, DType dtype) {
  unsigned char bytes[4];
  store_from_float(bytes, 0, dtype, static_cast<float>(value));
  return load_as_float(bytes, 0, dtype);
}

// Equal, or both NaN.
bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Random z [n, d], codebook [k, d] and the id of a code for each row of z.
struct Problem {
  Matrix z, codebook;
  std::vector<long long> ids;

  Problem(int n, int k, int d, DType z_type, DType code_type, int gap = 0)
      : z(random_matrix(n, d, 1, z_type, gap)), codebook(random_matrix(k, d, 2, code_type, gap)) {
    std::mt19937 random(3);
    for (int i = 0; i < n; ++i) ids.push_back(random() % static_cast<unsigned>(k));
  }
};

struct Forward {
  Matrix z_q;
  float commit = -7, codebook_loss = -7;
};

// Runs the two forward kernels.
Forward forward(const Problem& p, unsigned seed = 0) {
  Forward out{Matrix(p.z.rows, p.z.columns, p.z.dtype)};
  const int blocks = (p.z.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  std::vector<double> sums(static_cast<std::size_t>(blocks), kNan);
  launch(blocks, 1, kThreads, seed, [&] {
    vector_quantize_fwd_kernel(p.z.bytes.data(), p.z.type(), p.z.rows, p.z.columns, p.z.stride, p.codebook.bytes.data(),
                               p.codebook.type(), p.codebook.stride, p.ids.data(), out.z_q.bytes.data(), sums.data());
  });
  launch(1, 1, kThreads, seed, [&] {
    vector_quantize_loss_kernel(sums.data(), blocks, static_cast<double>(p.z.rows) * p.z.columns, &out.commit,
                                &out.codebook_loss);
  });
  return out;
}

// The gradient of z, from the gradients of z_q (with any strides) and of the commitment loss.
Matrix backward_z(const Problem& p, const Matrix& grad_z_q, int stride_row, int stride_column, float grad_commit) {
  Matrix out(p.z.rows, p.z.columns, p.z.dtype);
  const int blocks = 2;  // so few that each thread processes several elements
  launch(blocks, 1, kThreads, 0, [&] {
    vector_quantize_bwd_z_kernel(p.z.bytes.data(), p.z.type(), p.z.rows, p.z.columns, p.z.stride,
                                 p.codebook.bytes.data(), p.codebook.type(), p.codebook.stride, p.ids.data(),
                                 grad_z_q.bytes.data(), stride_row, stride_column, &grad_commit, blocks,
                                 out.bytes.data());
  });
  return out;
}

// The gradient of the codebook, from the gradient of the codebook loss.
Matrix backward_codebook(const Problem& p, float grad_codebook_loss, unsigned seed = 0) {
  Matrix out(p.codebook.rows, p.codebook.columns, p.codebook.dtype);
  launch((p.codebook.rows - 1) / kEntriesPerBlock + 1, (p.codebook.columns - 1) / device::kWarp + 1, kThreads, seed,
         [&] {
           vector_quantize_bwd_codebook_kernel(p.z.bytes.data(), p.z.type(), p.z.rows, p.z.columns, p.z.stride,
                                               p.codebook.bytes.data(), p.codebook.type(), p.codebook.rows,
                                               p.codebook.stride, p.ids.data(), &grad_codebook_loss, out.bytes.data());
         });
  return out;
}

const DType kTypes[] = {DType::float32, DType::float16, DType::bfloat16};

TEST(rows_become_their_entries_and_both_losses_the_mean_square) {
  const struct {
    int n, k, d;
  } sizes[] = {{1, 1, 1}, {33, 20, 7}, {100, 300, 32}, {31, 64, 70}};
  for (const auto& size : sizes) {
    for (DType z_type : kTypes) {
      for (DType code_type : kTypes) {
        const Problem p(size.n, size.k, size.d, z_type, code_type, 3);
        const Forward got = forward(p);
        double sum = 0;
        for (int row = 0; row < size.n; ++row) {
          for (int d = 0; d < size.d; ++d) {
            const double entry = p.codebook(p.ids[row], d), difference = entry - p.z(row, d);
            CHECK_EQUAL(got.z_q(row, d), rounded(entry, z_type));
            sum += difference * difference;
          }
        }
        const double expected = sum / (size.n * size.d);
        CHECK(std::abs(got.commit - expected) <= 0x1p-23 * expected);
        CHECK_EQUAL(got.commit, got.codebook_loss);
      }
    }
  }
}

TEST(rows_without_an_entry_are_nan_and_spoil_the_loss_but_not_the_other_rows) {
  Problem p(40, 20, 8, DType::float32, DType::float32);
  p.ids[17] = -1;
  const Forward got = forward(p);
  CHECK(std::isnan(got.commit) && std::isnan(got.codebook_loss));
  for (int row = 0; row < 40; ++row) CHECK_EQUAL(std::isnan(got.z_q(row, 3)), row == 17);
  const Matrix grad = backward_z(p, p.z, 8, 1, 1);
  for (int row = 0; row < 40; ++row) CHECK_EQUAL(std::isnan(grad(row, 3)), row == 17);
  const Matrix grad_codebook = backward_codebook(p, 1);
  for (int k = 0; k < 20; ++k) CHECK(!std::isnan(grad_codebook(k, 3)));
}

TEST(loss_of_nothing_is_nan_and_its_gradient_zero) {
  const Problem p(0, 5, 8, DType::float32, DType::float32);
  float commit = 0, codebook_loss = 0;
  launch(1, 1, kThreads, 0, [&] { vector_quantize_loss_kernel(nullptr, 0, 0, &commit, &codebook_loss); });
  CHECK(std::isnan(commit) && std::isnan(codebook_loss));
  const Matrix grad = backward_codebook(p, 1);
  for (int k = 0; k < 5; ++k) CHECK_EQUAL(grad(k, 2), 0.0);
}

TEST(gradient_of_z_follows_its_formula_for_any_strides_of_the_incoming_one) {
  for (DType type : kTypes) {
    const Problem p(37, 20, 40, type, DType::float32, 2);
    const Matrix straight = random_matrix(37, 40, 5, type, 4), turned = random_matrix(40, 37, 5, type);
    const Matrix one = random_matrix(1, 1, 6, type);
    const struct {
      const Matrix& grad;
      int row, column;
    } layouts[] = {{straight, 44, 1}, {turned, 1, 37}, {one, 0, 0}};
    for (const auto& layout : layouts) {
      const Matrix got = backward_z(p, layout.grad, layout.row, layout.column, 1.5f);
      for (int row = 0; row < 37; ++row) {
        for (int d = 0; d < 40; ++d) {
          const double above =
              load_as_float(layout.grad.bytes.data(), row * layout.row + d * layout.column, layout.grad.dtype);
          const double difference = p.codebook(p.ids[row], d) - p.z(row, d);
          CHECK_EQUAL(got(row, d), rounded(above - 1.5 * (2.0 / (37.0 * 40.0)) * difference, type));
        }
      }
    }
  }
}

TEST(gradient_of_the_codebook_sums_each_entry_in_row_order) {
  const struct {
    int n, k, d;
  } sizes[] = {{1, 1, 1}, {300, 20, 7}, {600, 300, 32}, {257, 129, 70}};
  for (const auto& size : sizes) {
    for (DType type : kTypes) {
      const Problem p(size.n, size.k, size.d, DType::float32, type, 1);
      const Matrix got = backward_codebook(p, 0.25f);
      for (int k = 0; k < size.k; ++k) {
        for (int d = 0; d < size.d; ++d) {
          double sum = 0;
          for (int row = 0; row < size.n; ++row) {
            if (p.ids[row] == k) sum += p.codebook(k, d) - p.z(row, d);
          }
          const double scale = 0.25 * (2.0 / (static_cast<double>(size.n) * size.d));
          CHECK(same(got(k, d), rounded(scale * sum, type)));  // bit-equal: same order of summation, same precision
        }
      }
    }
  }
}

TEST(no_order_of_threads_changes_a_bit) {
  const Problem p(500, 3, 33, DType::float32, DType::float32);
  const Matrix expected = backward_codebook(p, 1);
  const Forward first = forward(p);
  for (unsigned seed = 1; seed < 5; ++seed) {
    CHECK(backward_codebook(p, 1, seed).bytes == expected.bytes);
    const Forward again = forward(p, seed);
    CHECK(again.z_q.bytes == first.z_q.bytes);
    CHECK_EQUAL(again.commit, first.commit);
  }
}

}  // namespace

int main() { return check::run(); }

// nearest_code and vector_quantize on the CPU, for every instruction set, against float64. Buffers have the exact size,
// so that ASan reports every access beyond them.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "nearest_code_cpu.h"

namespace {

using namespace seed_fast;

// Random z [N, D] and codebook [K, D]. `spread` and `offset`: standard deviation and mean of the codebook.
struct Problem {
  int64_t N, K, D;
  std::vector<float> z, codebook;

  Problem(int64_t N, int64_t K, int64_t D, float spread, float offset) : N(N), K(K), D(D), z(N * D), codebook(K * D) {
    std::mt19937 random(unsigned(N * 1009 + K * 31 + D));
    std::normal_distribution<float> normal;
    for (float& value : z) value = normal(random);
    for (float& value : codebook) value = offset + spread * normal(random);
  }

  // The code nearest to row n by ||e||^2 - 2 e.z in float64.
  int64_t nearest(int64_t n) const {
    int64_t best = 0;
    double lowest = std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < K; ++k) {
      double score = 0;
      for (int64_t d = 0; d < D; ++d) {
        const double e = codebook[k * D + d];
        score += e * e - 2 * e * z[n * D + d];
      }
      if (score < lowest) lowest = score, best = k;
    }
    return best;
  }

  // The packed codebook that the op takes.
  std::vector<unsigned char> pack(Isa isa = Isa::avx512bf16) const {
    std::vector<unsigned char> packed(nearest_code_cpu_packed_bytes(K, D));
    CHECK_EQUAL(pack_codebook_cpu(codebook.data(), DType::float32, K, D, D, 1, packed.data(), 2, isa), -1);
    return packed;
  }
};

// Checks both ops on every size and instruction set. All outputs start as -7.
void compare(float spread, float offset) {
  const int64_t sizes[][3] = {{1, 1, 1}, {3, 2, 5}, {13, 129, 32}, {97, 127, 31}, {400, 200, 33}, {33, 513, 64}};
  for (const auto& [N, K, D] : sizes) {
    const Problem problem(N, K, D, spread, offset);
    for (Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
      const auto packed = problem.pack(isa);
      std::vector<int64_t> ids(N, -7);
      std::vector<float> margin(N, -7), z_q(N * D, -7);
      std::vector<double> squares(N, -7);
      CHECK_EQUAL(nearest_code_cpu(problem.z.data(), DType::float32, N, D, D, 1, packed.data(), K, ids.data(),
                                   margin.data(), 2, isa),
                  -1);
      for (int64_t n = 0; n < N; ++n) {
        CHECK_EQUAL(ids[n], problem.nearest(n));
        CHECK(margin[n] >= 0);
      }
      std::vector<int64_t> again(N, -7);
      CHECK_EQUAL(vector_quantize_cpu(problem.z.data(), DType::float32, N, D, D, 1, packed.data(), K, z_q.data(),
                                      again.data(), squares.data(), 2, isa),
                  -1);
      CHECK(again == ids);
      for (int64_t n = 0; n < N; ++n)
        for (int64_t d = 0; d < D; ++d) CHECK_EQUAL(z_q[n * D + d], problem.codebook[ids[n] * D + d]);
    }
  }
}

TEST(ids_equal_the_float64_argmin) { compare(1.0f, 0.0f); }
TEST(a_collapsed_codebook_far_from_zero_is_exact) { compare(1e-5f, 3.0f); }

// A row with NaN gets id -1. The op returns the first row whose scores overflow float32, or -1.
TEST(rows_that_cannot_be_searched_are_reported) {
  Problem problem(40, 60, 8, 1.0f, 0.0f);
  const auto packed = problem.pack();
  problem.z[5 * 8] = std::nanf("");
  std::vector<int64_t> ids(40);
  const auto search = [&] {
    return nearest_code_cpu(problem.z.data(), DType::float32, 40, 8, 8, 1, packed.data(), 60, ids.data(), nullptr, 2,
                            Isa::avx512bf16);
  };
  CHECK_EQUAL(search(), -1);
  CHECK_EQUAL(ids[5], -1);
  problem.z[9 * 8] = 1e30f;
  CHECK_EQUAL(search(), 9);
}

}  // namespace

int main() { return check::run(); }

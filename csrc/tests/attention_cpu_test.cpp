// attention on the CPU against the definition in float64, on every instruction set of this CPU. Buffers have the exact
// size, so that ASan reports every access beyond them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "attention_cpu.h"
#include "check.h"

namespace {

using namespace seed_fast;

struct Shape {
  int64_t B, Lq, Lk, H, D;
};

constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::avx512bf16};
constexpr Shape kShapes[] = {{2, 32, 32, 2, 64}, {1, 32, 257, 1, 64}, {1, 45, 45, 1, 88},   {1, 1, 1, 1, 16},
                             {1, 5, 7, 2, 24},   {1, 3, 1030, 1, 16}, {1, 33, 530, 1, 128}, {0, 3, 4, 2, 16}};

// `count` normally distributed numbers.
std::vector<float> draw(int64_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// The attention output of query i of head h in batch b, [D], in float64, from contiguous tensors [B, L, H, D].
std::vector<double> expected_row(const Shape& s, const std::vector<float>& q, const std::vector<float>& k,
                                 const std::vector<float>& v, int64_t b, int64_t i, int64_t h, bool causal) {
  const auto at = [&](int64_t l, int64_t L) { return size_t(((b * L + l) * s.H + h) * s.D); };
  std::vector<double> out(size_t(s.D), 0.0);
  double sum = 0;
  for (int64_t j = 0; j < (causal ? std::min(s.Lk, i + 1) : s.Lk); ++j) {
    double score = 0;
    for (int64_t d = 0; d < s.D; ++d) score += double(q[at(i, s.Lq) + size_t(d)]) * k[at(j, s.Lk) + size_t(d)];
    const double weight = std::exp(score * 0.125);
    sum += weight;
    for (int64_t d = 0; d < s.D; ++d) out[size_t(d)] += weight * v[at(j, s.Lk) + size_t(d)];
  }
  for (double& value : out) value /= sum;
  return out;
}

// Runs every shape on every instruction set and checks each output element against the definition.
void compare(DType dtype, double tolerance) {
  for (const Shape& s : kShapes)
    for (const bool causal : {false, true}) {
      std::vector<float> tensors[3] = {draw(s.B * s.Lq * s.H * s.D, 1), draw(s.B * s.Lk * s.H * s.D, 2),
                                       draw(s.B * s.Lk * s.H * s.D, 3)};
      // Round the inputs to the dtype, so that the definition sees the same values as the op.
      std::vector<uint16_t> narrow[3];
      AttentionTensor operands[3];
      for (int n = 0; n < 3; ++n) {
        const int64_t L = n == 0 ? s.Lq : s.Lk;
        for (float& value : tensors[n]) {
          if (dtype == DType::float32) break;
          narrow[n].push_back(dtype == DType::bfloat16 ? float_to_bfloat16(value) : float_to_half(value));
          value = load_as_float(narrow[n].data(), int64_t(narrow[n].size()) - 1, dtype);
        }
        const void* data = narrow[n].empty() ? static_cast<const void*>(tensors[n].data()) : narrow[n].data();
        operands[n] = {data, L * s.H * s.D, s.H * s.D, s.D, 1};
      }
      // Run into a buffer of NaN and compare.
      for (const Isa isa : kIsas) {
        std::vector<float> wide(tensors[0].size(), std::numeric_limits<float>::quiet_NaN());
        std::vector<uint16_t> half(dtype == DType::float32 ? 0 : wide.size(), 0x7fff);
        void* out = half.empty() ? static_cast<void*>(wide.data()) : half.data();
        attention_cpu(operands[0], operands[1], operands[2], out, nullptr, dtype, s.B, s.Lq, s.Lk, s.H, s.D, causal,
                      0.125f, 2, isa);
        for (int64_t row = 0; row < s.B * s.Lq * s.H; ++row) {
          const int64_t h = row % s.H, i = row / s.H % s.Lq, b = row / s.H / s.Lq;
          const auto expected = expected_row(s, tensors[0], tensors[1], tensors[2], b, i, h, causal);
          for (int64_t d = 0; d < s.D; ++d)
            CHECK(std::fabs(load_as_float(out, row * s.D + d, dtype) - expected[size_t(d)]) <= tolerance);
        }
      }
    }
}

TEST(float32_equals_the_definition) { compare(DType::float32, 4e-6); }
TEST(bfloat16_equals_the_definition) { compare(DType::bfloat16, 3e-2); }
TEST(float16_equals_the_definition) { compare(DType::float16, 4e-3); }

TEST(halves_survive_the_way_to_float32_and_back) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float half = load_as_float(&bits, 0, DType::float16), brain = load_as_float(&bits, 0, DType::bfloat16);
    if (half == half) CHECK_EQUAL(float_to_half(half), bits);
    if (brain == brain) CHECK_EQUAL(float_to_bfloat16(brain), bits);
  }
  CHECK_EQUAL(float_to_half(65519.0f), 0x7bff);  // the largest integer that does not round to infinity
  CHECK_EQUAL(float_to_half(65520.0f), 0x7c00);
  CHECK_EQUAL(float_to_half(1.0f + 0x1p-11f), 0x3c00);  // ties to even
  CHECK_EQUAL(float_to_bfloat16(1.0f + 0x3p-8f), 0x3f82);
  CHECK_EQUAL(float_to_half(0x1p-25f), 0);
}

}  // namespace

int main() { return check::run(); }

// Runs the kernels of csrc/cuda/attention*.cu on the host (device_host.h), and computes the expected outputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "attention.cu"
#include "attention_plan.h"
#include "attention_sm70.cu"
#include "check.h"
#include "dtype.h"

namespace seed_fast::attention::testing {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
  int B, Lq, Lk, H, D;
};

// A tensor [B, L, H, D] of float32 or float16 with `gap` unused elements after every head's D elements and `offset`
// before the first; unused elements are NaN. The buffer has the exact size, so that ASan reports every access beyond
// it.
struct Operand {
  DType dtype;
  int64_t L, H, D, stride_l, stride_h, stride_b, offset;
  std::vector<uint32_t> floats;
  std::vector<uint16_t> halves;

  Operand(DType dtype, int B, int L, int H, int D, int gap = 0, int offset = 0)
      : dtype(dtype),
        L(L),
        H(H),
        D(D),
        stride_l((D + gap) * H),
        stride_h(D + gap),
        stride_b(stride_l * L),
        offset(offset) {
    const size_t size = static_cast<size_t>(offset + B * stride_b - (B > 0 ? gap : 0));
    dtype == DType::float32 ? floats.assign(size, ~0u) : halves.assign(size, 0xffff);
  }

  void* data() { return dtype == DType::float32 ? static_cast<void*>(floats.data()) : halves.data(); }
  const void* data() const { return const_cast<Operand*>(this)->data(); }
  AttentionTensor tensor() const {
    const int64_t size = dtype == DType::float32 ? 4 : 2;
    return {static_cast<const char*>(data()) + offset * size, stride_b, stride_l, stride_h, 1};
  }
  int64_t at(int64_t b, int64_t l, int64_t h, int64_t d) const {
    return offset + b * stride_b + l * stride_l + h * stride_h + d;
  }
  float get(int64_t b, int64_t l, int64_t h, int64_t d) const { return load_as_float(data(), at(b, l, h, d), dtype); }
  void set(int64_t b, int64_t l, int64_t h, int64_t d, float value) {
    store_from_float(data(), at(b, l, h, d), dtype, value);
  }
};

struct Case {
  Shape shape;
  DType dtype = DType::float16;
  bool causal = false;
  float scale = 0.125f;
  float magnitude = 1;  // standard deviation of q
  int gap = 0, offset = 0;
  unsigned seed = 0;  // order of threads, see device_host.h
};

inline Operand random_operand(const Case& c, int L, unsigned seed, float magnitude) {
  Operand operand(c.dtype, c.shape.B, L, c.shape.H, c.shape.D, c.gap, c.offset);
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int b = 0; b < c.shape.B; ++b)
    for (int l = 0; l < L; ++l)
      for (int h = 0; h < c.shape.H; ++h)
        for (int d = 0; d < c.shape.D; ++d) operand.set(b, l, h, d, magnitude * normal(random));
  return operand;
}

struct Inputs {
  Operand q, k, v;
  explicit Inputs(const Case& c)
      : q(random_operand(c, c.shape.Lq, 1, c.magnitude)),
        k(random_operand(c, c.shape.Lk, 2, 1)),
        v(random_operand(c, c.shape.Lk, 3, 1)) {}
};

// Every kernel by its name.
#define SEED_FAST_KERNELS(prefix, width) \
  {"attention_fwd_" #prefix "_w" #width "_kernel", attention_fwd_##prefix##_w##width##_kernel}
#define SEED_FAST_WIDTHS(prefix, odd)                                                           \
  SEED_FAST_KERNELS(prefix, 32), SEED_FAST_KERNELS(prefix, 64), SEED_FAST_KERNELS(prefix, odd), \
      SEED_FAST_KERNELS(prefix, 128)
inline const std::map<std::string, void (*)(Problem)>& kernels() {
  static const std::map<std::string, void (*)(Problem)> all = {
      SEED_FAST_WIDTHS(float32_rows32, 96),    SEED_FAST_WIDTHS(float32_rows96, 96),
      SEED_FAST_WIDTHS(float32_unaligned, 96), SEED_FAST_WIDTHS(float16_unaligned, 96),
      SEED_FAST_WIDTHS(sm70_keys32, 88),       SEED_FAST_WIDTHS(sm70_keys288, 88),
      SEED_FAST_WIDTHS(sm70_many, 88)};
  return all;
}
#undef SEED_FAST_WIDTHS
#undef SEED_FAST_KERNELS

// Runs the kernel that the launcher would pick, on an output filled with NaN. `kernel`, if given, receives its name.
inline Operand attend(const Case& c, const Inputs& in, std::string* kernel = nullptr) {
  const Shape& s = c.shape;
  Operand out(c.dtype, s.B, s.Lq, s.H, s.D);
  const Plan plan(in.q.tensor(), in.k.tensor(), in.v.tensor(), out.data(), c.dtype, s.B, s.Lq, s.Lk, s.H, s.D, c.causal,
                  c.scale);
  if (kernel) *kernel = plan.kernel;
  const auto run = kernels().at(plan.kernel);
  device::host::launch(static_cast<int>(plan.blocks), 1, plan.threads, c.seed, [&] { run(plan.problem); });
  return out;
}

// The attention output of one query, [D]. plain = false: the definition in float64. plain = true: with the rounding of
// plain torch, which rounds scores, weights and output to the dtype and accumulates in float32.
inline std::vector<double> softmax_row(const Case& c, const Inputs& in, bool plain, int b, int i, int h) {
  const Shape& s = c.shape;
  const auto round = [&](double x) {
    return !plain ? x : c.dtype == DType::float32 ? static_cast<float>(x) : half_to_float(float_to_half(float(x)));
  };
  const int visible = c.causal ? std::min(s.Lk, i + 1) : s.Lk;
  // Scores and their maximum.
  std::vector<double> weights(static_cast<size_t>(visible)), out(static_cast<size_t>(s.D), 0.0);
  double largest = -kInf, total = 0;
  for (int j = 0; j < visible; ++j) {
    double score = 0;
    for (int d = 0; d < s.D; ++d) {
      score += double(in.q.get(b, i, h, d)) * in.k.get(b, j, h, d);
      if (plain) score = static_cast<float>(score);
    }
    weights[j] = round(round(score) * c.scale);
    largest = std::max(largest, weights[j]);
  }
  // Softmax, then the weighted sum of the values.
  for (double& weight : weights) total += weight = std::exp(weight - largest);
  for (int j = 0; j < visible; ++j) {
    const double weight = round(weights[j] / total);
    for (int d = 0; d < s.D; ++d) {
      out[d] += weight * in.v.get(b, j, h, d);
      if (plain) out[d] = static_cast<float>(out[d]);
    }
  }
  for (double& value : out) value = round(value);
  return out;
}

// Runs one case and fails unless every output is written and the largest error against the definition is at most twice
// that of plain torch in the same dtype. `edit`, if given, changes the random inputs first. Returns the name of the
// kernel that ran.
inline std::string check_case(const Case& c, const std::function<void(Inputs&)>& edit = nullptr) {
  const Shape& s = c.shape;
  Inputs in(c);
  if (edit) edit(in);
  std::string kernel;
  const Operand out = attend(c, in, &kernel);
  double error = 0, plain_error = 0, largest = 0;
  for (int b = 0; b < s.B; ++b)
    for (int i = 0; i < s.Lq; ++i)
      for (int h = 0; h < s.H; ++h) {
        const auto exact = softmax_row(c, in, false, b, i, h), plain = softmax_row(c, in, true, b, i, h);
        for (int d = 0; d < s.D; ++d) {
          const double got = out.get(b, i, h, d);
          CHECK(got == got);
          error = std::max(error, std::abs(got - exact[d]));
          plain_error = std::max(plain_error, std::abs(plain[d] - exact[d]));
          largest = std::max(largest, std::abs(exact[d]));
        }
      }
  // With a single key plain torch has no error at all; one rounding is allowed in any case.
  const double rounding = largest * (c.dtype == DType::float32 ? 0x1p-23 : 0x1p-11);
  if (!(error <= std::max(2 * plain_error, rounding))) {
    throw check::Failure(kernel + ": error " + std::to_string(error * 1e6) + "e-6, plain " +
                         std::to_string(plain_error * 1e6) + "e-6");
  }
  return kernel;
}

}  // namespace seed_fast::attention::testing

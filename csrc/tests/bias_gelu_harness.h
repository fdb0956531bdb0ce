// Problems of bias_gelu with their expected results in float64, for the CPU and CUDA tests. Buffers have the exact
// size, so that ASan reports every access beyond them; outputs are filled with NaN before a kernel runs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "bias_gelu_cpu.h"
#include "check.h"

namespace seed_fast::bias_gelu::testing {

using Launch = std::function<void(const BiasGelu&)>;  // runs one problem on the device under test
constexpr DType kTypes[] = {DType::float32, DType::float16, DType::bfloat16};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Case {
  int rows, columns;
  DType type = DType::float32, bias_type = DType::float32;
  int gap = 0, offset = 0;  // elements after each row but the last, and before the first
  float magnitude = 1;
};

// An array of one dtype in a buffer of exactly its size, filled with NaN.
struct Numbers {
  DType dtype;
  std::vector<uint32_t> floats;
  std::vector<uint16_t> halves;

  Numbers(DType dtype, int64_t count) : dtype(dtype) {
    dtype == DType::float32 ? floats.assign(size_t(count), ~0u) : halves.assign(size_t(count), 0xffff);
  }
  char* at(int64_t i) {
    return dtype == DType::float32 ? reinterpret_cast<char*>(floats.data() + i)
                                   : reinterpret_cast<char*>(halves.data() + i);
  }
  float get(int64_t i) const {
    return dtype == DType::float32 ? load_as_float(floats.data(), i, dtype) : load_as_float(halves.data(), i, dtype);
  }
  void set(int64_t i, float value) { store_from_float(at(i), 0, dtype, value); }
};

// A case with random inputs, its output buffer, and the expected values.
struct Run {
  Case c;
  int64_t stride;
  Numbers x, bias, y;

  explicit Run(const Case& c)
      : c(c),
        stride(c.columns + c.gap),
        x(c.type, c.offset + std::max<int64_t>(0, c.rows * stride - c.gap)),
        bias(c.bias_type, c.columns),
        y(c.type, int64_t(c.rows) * c.columns) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (int row = 0; row < c.rows; ++row)
      for (int at = 0; at < c.columns; ++at) x.set(index(row, at), c.magnitude * normal(random));
    for (int at = 0; at < c.columns; ++at) bias.set(at, c.magnitude * normal(random));
  }
  int64_t index(int64_t row, int64_t at) const { return c.offset + row * stride + at; }
  BiasGelu problem() {
    return {x.at(c.offset), c.type, stride, bias.at(0), c.bias_type, y.at(0), c.columns, c.rows, c.columns};
  }
  double sum(int64_t row, int64_t at) const { return x.get(index(row, at)) + bias.get(at); }  // in float32
  double expected(int64_t row, int64_t at) const {
    return 0.5 * sum(row, at) * std::erfc(-sum(row, at) / std::sqrt(2.0));
  }
};

// Largest relative error of rounding to the dtype.
inline double unit(DType dtype) {
  return dtype == DType::float32 ? 0x1p-24 : dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
}

// Fails unless `got` is within 16 float32 roundings plus one rounding to the dtype of `expected`. The relative error of
// exp(-x^2 / 2), which decides for large negative sums, grows with its exponent; hence sum^2 more roundings.
inline void check_value(float got, double expected, double sum, DType dtype) {
  const double error = std::abs(got - expected), smallest = dtype == DType::float16 ? 0x1p-25 : 0x1p-125;
  CHECK(error <= ((16 + sum * sum) * 0x1p-24 + unit(dtype)) * std::abs(expected) + smallest);
}

// Runs the case and checks every element of the output.
inline void compare(const Case& c, const Launch& launch) {
  Run run(c);
  launch(run.problem());
  for (int row = 0; row < c.rows; ++row)
    for (int at = 0; at < c.columns; ++at)
      check_value(run.y.get(int64_t(row) * c.columns + at), run.expected(row, at), run.sum(row, at), c.type);
}

// The bodies of tests that hold on both devices.
inline void every_number_from_minus_13_to_13_is_precise(const Launch& launch) {
  const int columns = 26 * 128 + 1;
  Run run({1, columns});
  for (int at = 0; at < columns; ++at) {
    run.x.set(at, -13 + float(at) / 128);
    run.bias.set(at, 0);
  }
  launch(run.problem());
  for (int at = 0; at < columns; ++at) check_value(run.y.get(at), run.expected(0, at), run.sum(0, at), DType::float32);
}

inline void nan_and_infinity_change_no_other_element(const Launch& launch) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const int columns : {9, 64}) {
    Run run({2, columns});
    for (int at = 0; at < columns; ++at) run.bias.set(at, 0);
    const float values[] = {kNan, kInfinity, -kInfinity, 3e38f, -3e38f, 1e-40f};
    for (int at = 0; at < 6; ++at) run.x.set(at, values[at]);
    launch(run.problem());
    CHECK(std::isnan(run.y.get(0)));
    CHECK_EQUAL(run.y.get(1), kInfinity);
    CHECK_EQUAL(run.y.get(2), 0.0f);
    CHECK_EQUAL(run.y.get(3), 3e38f);
    CHECK_EQUAL(run.y.get(4), 0.0f);
    CHECK(std::abs(run.y.get(5)) < 1e-40f);
    for (int at = 6; at < 2 * columns; ++at) CHECK(!std::isnan(run.y.get(at)));
  }
}

inline void y_may_overwrite_x(const Launch& launch) {
  for (const DType type : kTypes)
    for (const int columns : {33, 64}) {
      Run apart({21, columns, type, type}), same({21, columns, type, type});
      launch(apart.problem());
      BiasGelu problem = same.problem();
      problem.y = const_cast<void*>(problem.x), problem.y_stride = problem.x_stride;
      launch(problem);
      CHECK(same.x.floats == apart.y.floats && same.x.halves == apart.y.halves);
    }
}

}  // namespace seed_fast::bias_gelu::testing

// Problems of add_layer_norm with their expected results in float64, for the CPU and CUDA tests. Buffers have the exact
// size, so that ASan reports every access beyond them; outputs are filled with NaN before a kernel runs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "add_layer_norm_cpu.h"
#include "check.h"

namespace seed_fast::add_layer_norm::testing {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A matrix [rows, columns] of one dtype in a buffer with `offset` unused elements before the first row and `gap` unused
// elements after each row but the last.
struct Operand {
  DType dtype;
  int64_t rows, columns, stride, offset;
  std::vector<uint32_t> words;  // 4-byte aligned memory

  Operand(DType dtype, int64_t rows, int64_t columns, int gap = 0, int offset = 0)
      : dtype(dtype),
        rows(rows),
        columns(columns),
        stride(columns + gap),
        offset(offset),
        words(static_cast<size_t>((bytes() + 3) / 4), ~0u) {}

  int64_t size() const { return dtype == DType::float32 ? 4 : 2; }
  int64_t bytes() const { return (offset + std::max<int64_t>(0, rows * stride - (stride - columns))) * size(); }
  char* data() { return reinterpret_cast<char*>(words.data()) + offset * size(); }
  NormMatrix matrix() { return {data(), dtype, stride}; }
  float get(int64_t row, int64_t column) const {
    return load_as_float(words.data(), offset + row * stride + column, dtype);
  }
  void set(int64_t row, int64_t column, float value) {
    store_from_float(words.data(), offset + row * stride + column, dtype, value);
  }
};

struct Case {
  int rows, columns;
  DType x_type = DType::float32, delta_type = DType::float32, y_type = DType::float32;
  bool post_norm = false;           // the stream receives the norm instead of the sum
  int gap = 0, offset = 0;          // of x and delta, see Operand
  float magnitude = 1, centre = 0;  // standard deviation of x and delta, mean of x
};

// A case with random inputs, its output buffers, and the expected values.
struct Run {
  Case c;
  Operand x, delta, stream, y;
  std::vector<float> weight, bias;
  float eps = 1e-6f;

  explicit Run(const Case& c)
      : c(c),
        x(c.x_type, c.rows, c.columns, c.gap, c.offset),
        delta(c.delta_type, c.rows, c.columns, c.gap, c.offset),
        stream(c.x_type, c.rows, c.columns),
        y(c.y_type, c.rows, c.columns) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (int row = 0; row < c.rows; ++row) {
      for (int at = 0; at < c.columns; ++at) {
        x.set(row, at, c.centre + c.magnitude * normal(random));
        delta.set(row, at, c.magnitude * normal(random));
      }
    }
    for (int at = 0; at < c.columns; ++at) {
      weight.push_back(1 + 0.1f * normal(random));
      bias.push_back(0.1f * normal(random));
    }
  }

  AddLayerNorm problem() {
    return {x.matrix(),  delta.matrix(),  weight.data(), bias.data(), eps,
            c.post_norm, stream.matrix(), y.matrix(),    c.rows,      c.columns};
  }

  // x + delta, rounded to the dtype of the stream.
  float sum(int64_t row, int64_t at) const {
    unsigned char bytes[4];
    store_from_float(bytes, 0, c.x_type, x.get(row, at) + delta.get(row, at));
    return load_as_float(bytes, 0, c.x_type);
  }

  // The layer norm of a row of sums, in float64.
  std::vector<double> norm(int64_t row) const {
    double mean = 0, variance = 0;
    for (int at = 0; at < c.columns; ++at) mean += static_cast<double>(sum(row, at)) / c.columns;
    for (int at = 0; at < c.columns; ++at) variance += std::pow(sum(row, at) - mean, 2) / c.columns;
    std::vector<double> out;
    for (int at = 0; at < c.columns; ++at) {
      out.push_back((sum(row, at) - mean) / std::sqrt(variance + eps) * weight[static_cast<size_t>(at)] +
                    bias[static_cast<size_t>(at)]);
    }
    return out;
  }
};

// Largest relative error of rounding to the dtype.
inline double unit(DType dtype) {
  return dtype == DType::float32 ? 0x1p-24 : dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
}

// Runs the case and checks its outputs: the sum must be bit-equal, the norm within eight float32 roundings of the row's
// largest element plus one rounding to its dtype.
inline void compare(const Case& c, const std::function<void(const AddLayerNorm&)>& launch) {
  Run run(c);
  launch(run.problem());
  for (int row = 0; row < c.rows; ++row) {
    const std::vector<double> norm = run.norm(row);
    double largest = 0;
    for (const double value : norm) largest = std::max(largest, std::abs(value));
    const auto close = [&](float got, double expected, DType dtype) {
      return std::abs(got - expected) <= 8 * 0x1p-24 * largest + unit(dtype) * std::abs(expected) + 0x1p-25;
    };
    for (int at = 0; at < c.columns; ++at) {
      const double expected = norm[static_cast<size_t>(at)];
      CHECK(close(run.y.get(row, at), expected, c.y_type));
      if (c.post_norm) CHECK(close(run.stream.get(row, at), expected, c.x_type));
      if (!c.post_norm) CHECK_EQUAL(run.stream.get(row, at), run.sum(row, at));
    }
  }
}

// The bodies of tests that hold on both devices; `launch` runs one problem.
inline void constant_rows_have_variance_zero(const std::function<void(const AddLayerNorm&)>& launch) {
  for (const int columns : {1, 7, 96, 768, 1408, 3000}) {
    for (const float value : {0.1f, -3.3f, 1e4f / 3, 1e30f, 1e-30f}) {
      Run run({2, columns});
      run.eps = 1e-12f;
      for (int at = 0; at < columns; ++at) {
        run.x.set(0, at, value);
        run.delta.set(0, at, 0);
      }
      launch(run.problem());
      for (int at = 0; at < columns; ++at) {
        CHECK_EQUAL(run.y.get(0, at), run.bias[static_cast<size_t>(at)]);
        CHECK_EQUAL(run.stream.get(0, at), value);
      }
    }
  }
}

inline void the_stream_may_overwrite_x(const std::function<void(const AddLayerNorm&)>& launch) {
  for (const bool post_norm : {false, true}) {
    for (const int columns : {33, 96, 2500, 2560}) {
      Run apart({5, columns}), same({5, columns});
      apart.c.post_norm = same.c.post_norm = post_norm;
      launch(apart.problem());
      AddLayerNorm problem = same.problem();
      problem.stream = problem.x;
      launch(problem);
      CHECK(same.x.words == apart.stream.words);
      CHECK(same.y.words == apart.y.words);
    }
  }
}

inline void a_null_stream_is_not_written(const std::function<void(const AddLayerNorm&)>& launch) {
  for (const int columns : {33, 96, 2560}) {
    for (const bool post_norm : {false, true}) {
      Run with({3, columns}), without({3, columns});
      with.c.post_norm = without.c.post_norm = post_norm;
      launch(with.problem());
      AddLayerNorm problem = without.problem();
      problem.stream = {nullptr, DType::float32, columns};
      launch(problem);
      CHECK(without.y.words == with.y.words);
      CHECK(std::isnan(without.stream.get(2, columns - 1)));
    }
  }
}

inline void rows_with_nan_change_no_other_row(const std::function<void(const AddLayerNorm&)>& launch) {
  for (const int columns : {33, 96, 2560}) {
    for (const float bad : {kNan, std::numeric_limits<float>::infinity()}) {
      Run run({6, columns});
      run.x.set(2, columns / 2, bad);
      launch(run.problem());
      for (int row = 0; row < 6; ++row) CHECK_EQUAL(std::isnan(run.y.get(row, 1)), row == 2);
    }
  }
}

}  // namespace seed_fast::add_layer_norm::testing

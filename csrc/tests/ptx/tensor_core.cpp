#include "tensor_core.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace ptx {
namespace {

// The sum of `sum` and the terms, rounded to odd: if it is not exact, it is truncated and its last bit is set. Rounding
// the result once more, to float32, then gives the same as rounding the exact sum.
double sum_to_odd(const double* terms, int count, double sum) {
  double lost = 0;  // the sum of all rounding errors
  // a + b; `error` receives the rounding error (Knuth's two-sum).
  const auto add = [](double a, double b, double& error) {
    const double total = a + b, part = total - a;
    error = (a - (total - part)) + (b - part);
    return total;
  };
  for (int i = 0; i < count; ++i) {
    double error;
    sum = add(sum, terms[i], error);
    lost += error;
  }
  double rest;
  sum = add(sum, lost, rest);
  if (rest == 0) return sum;
  if ((rest > 0) != (sum > 0)) sum = std::nextafter(sum, 0.0);
  uint64_t bits;
  std::memcpy(&bits, &sum, 8);
  bits |= 1;
  std::memcpy(&sum, &bits, 8);
  return sum;
}

float towards_zero(double value) {
  const float rounded = static_cast<float>(value);
  return std::abs(static_cast<double>(rounded)) > std::abs(value) ? std::nextafter(rounded, 0.0f) : rounded;
}

// The `truncating` model for up to four products.
float truncated(const double* products, int count, float c) {
  double largest = std::abs(static_cast<double>(c));
  for (int i = 0; i < count; ++i) largest = std::max(largest, std::abs(products[i]));
  if (largest == 0) return c;
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 23);
  double sum = std::trunc(c / unit);
  for (int i = 0; i < count; ++i) sum += std::trunc(products[i] / unit);
  return towards_zero(sum * unit);
}

}  // namespace

uint32_t scramble(uint32_t a, uint32_t b) {
  uint32_t x = a * 0x9e3779b9u ^ (b + 0x7f4a7c15u) * 0x85ebca6bu;
  x = (x ^ x >> 15) * 0x2c1b3c6du;
  x = (x ^ x >> 12) * 0x297a2d39u;
  return x ^ x >> 15;
}

float sum_of_products(const double* products, int count, float c, Arithmetic how, uint32_t noise) {
  double plain = c;
  for (int i = 0; i < count; ++i) plain += products[i];
  if (!std::isfinite(plain))
    return std::isnan(plain) ? std::numeric_limits<float>::quiet_NaN() : static_cast<float>(plain);
  if (how == Arithmetic::exact) return static_cast<float>(sum_to_odd(products, count, c));
  for (int first = 0; first < count; first += 4) {
    if (how == Arithmetic::truncating) {
      c = truncated(products + first, 4, c);
      continue;
    }
    double magnitudes = std::abs(static_cast<double>(c));
    for (int i = first; i < first + 4; ++i) magnitudes += std::abs(products[i]);
    const double most = 6 * 0x1p-23 * magnitudes, exact = sum_to_odd(products + first, 4, c);
    noise = scramble(noise, static_cast<uint32_t>(first));
    const double wrong = exact + (noise & 1 ? most : -most);
    c = static_cast<float>(wrong);
    // The rounding to float32 must not exceed the bound.
    if (std::abs(c - exact) > most) c = std::nextafter(c, static_cast<float>(exact));
  }
  return c;
}

}  // namespace ptx

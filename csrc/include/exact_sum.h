// Exact sums of products of float32, to compare scores whose difference is smaller than float64 rounding errors; for
// the kernels of the CPU and of CUDA.
#pragma once

#ifdef __CUDACC__
#define SEED_FAST_EXACT __device__ __forceinline__
#else
#define SEED_FAST_EXACT inline
#endif

namespace seed_fast {

// A sum of products of float32 values as a fixed-point integer: the sum over i of limbs[i] * 2^(32 i - 298). A limb has
// room for the parts of 2^29 products, so carries are propagated only by sign() and value(). It is an integer because
// neither the order of additions, nor contraction to fused multiply-adds, nor flushing of subnormals can change it.
struct ExactSum {
  static constexpr int kLimbs = 18;  // the largest product ends below bit 48 + 2 * 253 + 1
  long long limbs[kLimbs];

  SEED_FAST_EXACT ExactSum() {
    for (int i = 0; i < kLimbs; ++i) limbs[i] = 0;
  }

  // Adds a * b * 2^doubled, or subtracts it, given the bits of a and b, both finite.
  SEED_FAST_EXACT void add(unsigned a, unsigned b, int doubled, bool subtract) {
    const int a_exponent = static_cast<int>(a >> 23 & 0xff), b_exponent = static_cast<int>(b >> 23 & 0xff);
    const unsigned long long a_significand = (a & 0x7fffff) | (a_exponent ? 0x800000 : 0);
    const unsigned long long b_significand = (b & 0x7fffff) | (b_exponent ? 0x800000 : 0);
    const int shift = (a_exponent ? a_exponent - 1 : 0) + (b_exponent ? b_exponent - 1 : 0) + doubled;
    const int limb = shift / 32, bit = shift % 32;
    const unsigned long long product = a_significand * b_significand;  // 48 bits
    const unsigned long long low = product << bit, high = bit ? product >> (64 - bit) : 0;
    const long long sign = ((a ^ b) >> 31 != 0) != subtract ? -1 : 1;
    limbs[limb] += sign * static_cast<long long>(low & 0xffffffffu);
    limbs[limb + 1] += sign * static_cast<long long>(low >> 32);
    limbs[limb + 2] += sign * static_cast<long long>(high);
  }

  // Adds dimension i of score(e) - score(f) with score(e) = ||e||^2 - 2 z.e, given the bits of z_i, e_i and f_i.
  SEED_FAST_EXACT void add_difference(unsigned z, unsigned e, unsigned f) {
    add(e, e, 0, false);
    add(f, f, 0, true);
    add(z, e, 1, true);
    add(z, f, 1, false);
  }

  // -1, 0 or 1.
  SEED_FAST_EXACT int sign() const {
    long long carry = 0;
    bool nonzero = false;
    for (int i = 0; i < kLimbs; ++i) {
      const long long sum = limbs[i] + carry;
      nonzero |= (sum & 0xffffffffll) != 0;
      carry = sum >> 32;
    }
    return carry < 0 ? -1 : (carry > 0 || nonzero);
  }

  // The sum, which must not be negative, with an error of a few units in the last place of float64. It is 0 only if the
  // sum is exactly 0. Propagates carries, so it changes the limbs.
  SEED_FAST_EXACT double value() {
    long long carry = 0;
    for (int i = 0; i < kLimbs; ++i) {
      const long long sum = limbs[i] + carry;
      limbs[i] = sum & 0xffffffffll;
      carry = sum >> 32;
    }
    double total = static_cast<double>(carry), weight = 0x1p278;  // of limb kLimbs, 2^(32 * 18 - 298)
    total *= weight;
    for (int i = kLimbs - 1; i >= 0; --i) {
      weight *= 0x1p-32;
      total += static_cast<double>(limbs[i]) * weight;
    }
    return total;
  }
};

}  // namespace seed_fast

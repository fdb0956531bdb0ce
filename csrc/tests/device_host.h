// Host version of csrc/cuda/device.h, for tests: the threads of a block are fibers of one thread, so that a kernel runs
// under sanitizers and a debugger, and mistakes that a GPU would let pass are errors here:
//   - a barrier or shuffle that some thread of the block or warp doesn't reach, or reaches at another line
//   - shared memory read before it is written: it starts as NaN in every block
//   - a missing barrier: threads run in order or, with a seed, in others, up to their next barrier or shuffle
// Tensor cores take their fragments from the lanes that the PTX ISA names, and cut sums off as Volta's do.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>

#include "dtype.h"

#define SEED_FAST_DEVICE inline
#define SEED_FAST_DEVICE_NOINLINE inline
#define SEED_FAST_KERNEL(threads, blocks) inline void
#define SEED_FAST_SHARED(type, name, extents) \
  alignas(16) static type name extents;       \
  seed_fast::device::host::enter_shared(&name, sizeof name)
#define SEED_FAST_UNROLL
#define SEED_FAST_NO_UNROLL

struct __attribute__((may_alias, aligned(16))) float4 {
  float x, y, z, w;
};
struct __attribute__((may_alias, aligned(8))) uint2 {
  unsigned x, y;
};
struct __attribute__((may_alias, aligned(16))) uint4 {
  unsigned x, y, z, w;
};

namespace seed_fast::device {

constexpr int kWarp = 32;
constexpr bool kHasM16n8k16 = true;

namespace host {

// What a kernel did that no GPU defines.
class KernelError : public std::logic_error {
  using std::logic_error::logic_error;
};

// Runs the kernel once per thread of a grid of grid_x * grid_y blocks, one block after another. Seed 0: threads take
// turns in order; odd: in an order drawn from the seed; even: a warp runs ahead until it has to wait for the block,
// then another one, in an order of warps drawn from the seed. Throws KernelError, or what the kernel throws.
void launch(int grid_x, int grid_y, int threads, unsigned seed, const std::function<void()>& kernel);

// What the running thread asks for.
int thread_index();
int block_index_x();
int block_index_y();
void enter_shared(void* address, std::size_t bytes);
void wait_for_block(int line);
void exchange(const void* mine, void* theirs, std::size_t bytes, int mask, int line);

// One lane's part of a matrix product: registers of a and b, and c.
struct Fragment {
  unsigned a[4], b[2];
  float c[8];
};
// Waits for all lanes of the warp, then runs `compute` once on the 32 fragments.
void multiply_matrices(Fragment& mine, void (*compute)(Fragment* lanes), int line);
void compute_m8n8k4(Fragment* lanes);
void compute_m8n8k4_row_row(Fragment* lanes);
void compute_m16n8k8(Fragment* lanes);
void compute_m16n8k16(Fragment* lanes);

}  // namespace host

inline int thread_index() { return host::thread_index(); }
inline long long block_index_x() { return host::block_index_x(); }
inline long long block_index_y() { return host::block_index_y(); }

inline void barrier(int line = __builtin_LINE()) { host::wait_for_block(line); }

template <class T>
T shuffle_xor(T value, int mask, int line = __builtin_LINE()) {
  T other;
  host::exchange(&value, &other, sizeof value, mask, line);
  return other;
}

inline unsigned ballot(bool vote, int line = __builtin_LINE()) {
  unsigned votes = vote ? 1u << host::thread_index() % kWarp : 0;
  for (int mask = 1; mask < kWarp; mask *= 2) votes |= shuffle_xor(votes, mask, line);
  return votes;
}
inline int lowest_bit(unsigned bits) { return __builtin_ctz(bits); }

// Fibers of one thread need no atomic instruction.
inline void atomic_min(unsigned* address, unsigned value) {
  if (value < *address) *address = value;
}

inline unsigned atomic_add(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}

inline unsigned float_bits(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_from_bits(unsigned bits) { return bits_to_float(bits); }
inline float infinity() { return std::numeric_limits<float>::infinity(); }
inline float not_a_number() { return std::numeric_limits<float>::quiet_NaN(); }
inline float float_from_half(unsigned short bits) { return half_to_float(bits); }
inline unsigned short half_from_float(float value) { return float_to_half(value); }
inline unsigned half_pair(float low, float high) {
  return half_from_float(low) | static_cast<unsigned>(half_from_float(high)) << 16;
}

inline float float_round_up(double value) {
  if (value > static_cast<double>(std::numeric_limits<float>::max())) return infinity();
  const float nearest = static_cast<float>(value);
  return nearest < value ? std::nextafter(nearest, infinity()) : nearest;
}

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
inline float minimum(float a, float b) { return std::fmin(a, b); }
inline float maximum(float a, float b) { return std::fmax(a, b); }
inline float square_root(float a) { return std::sqrt(a); }
inline double square_root(double a) { return std::sqrt(a); }
// Errs, by up to what is documented for the GPU's instruction: differently for neighbouring values, the same for the
// same.
inline float power_of_two(float value) {
  if (value < -126) return 0;
  const unsigned mixed = float_bits(value) * 2654435761u;
  const double error = (mixed >> 8) * 0x1p-23 - 1;  // in -1 .. 1; leaves room for the rounding to float
  return static_cast<float>(std::exp2(static_cast<double>(value)) * (1 + 0.75 * 0x1p-22 * error));
}

inline void mma_m8n8k4(float (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2], int line = __builtin_LINE()) {
  host::Fragment all{{a[0], a[1]}, {b[0], b[1]}, {}};
  std::memcpy(all.c, c, sizeof c);
  host::multiply_matrices(all, host::compute_m8n8k4, line);
  std::memcpy(c, all.c, sizeof c);
}
inline void mma_m8n8k4_row_row(float (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2],
                               int line = __builtin_LINE()) {
  host::Fragment all{{a[0], a[1]}, {b[0], b[1]}, {}};
  std::memcpy(all.c, c, sizeof c);
  host::multiply_matrices(all, host::compute_m8n8k4_row_row, line);
  std::memcpy(c, all.c, sizeof c);
}
inline void mma_m16n8k8(float (&c)[4], const unsigned (&a)[2], unsigned b, int line = __builtin_LINE()) {
  host::Fragment all{{a[0], a[1]}, {b}, {}};
  std::memcpy(all.c, c, sizeof c);
  host::multiply_matrices(all, host::compute_m16n8k8, line);
  std::memcpy(c, all.c, sizeof c);
}
inline void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
  host::Fragment all{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {}};
  std::memcpy(all.c, c, sizeof c);
  host::multiply_matrices(all, host::compute_m16n8k16, line);
  std::memcpy(c, all.c, sizeof c);
}

}  // namespace seed_fast::device

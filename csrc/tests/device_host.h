// Host version of csrc/cuda/device.h, for tests. The threads of a block are fibers (user-level contexts) of one host
// thread, so a kernel runs under sanitizers and in a debugger, and mistakes that may go unnoticed on a GPU are
// detected:
//   - a barrier or shuffle that some thread of the block or warp doesn't reach, or reaches at another source line:
//     KernelError
//   - shared memory read before it is written: every block starts with all of it NaN, so the results are NaN
//   - a missing barrier: each thread runs until its next barrier or shuffle, in an order that the seed permutes, so the
//     results change with the seed
// The emulated tensor cores place fragments in lanes as the PTX ISA describes, and truncate sums as Volta's do.
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

// A kernel did something whose result CUDA leaves undefined, such as a barrier that some threads never reach.
class KernelError : public std::logic_error {
  using std::logic_error::logic_error;
};

// Runs `kernel` once per thread of a grid of grid_x * grid_y blocks of `threads` threads, one block after another.
// The seed determines the order in which threads run between barriers and shuffles:
//   0:     in the order of their indices
//   odd:   in a random order of threads
//   even:  whole warps in a random order; each runs ahead until it has to wait at a barrier of the block
// Throws KernelError, or whatever the kernel throws.
void launch(int grid_x, int grid_y, int threads, unsigned seed, const std::function<void()>& kernel);

// The functions below are called by the running thread; `line` is the source line of the call, for error messages.
int thread_index();
int block_index_x();
int block_index_y();
// Fills the shared array with NaN when the first thread of a block reaches its declaration.
void enter_shared(void* address, std::size_t bytes);
// Barrier of the block.
void wait_for_block(int line);
// Shuffle: copies `bytes` bytes of `mine` of lane (own lane ^ mask) to `theirs`.
void exchange(const void* mine, void* theirs, std::size_t bytes, int mask, int line);

// One lane's registers in a matrix product c += a b.
struct Fragment {
  unsigned a[4], b[2];
  float c[8];
};
// Waits for all lanes of the warp, then runs `compute` once on their 32 fragments; `mine` receives this lane's result.
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

// Plain arithmetic is atomic here: all fibers share one host thread and switch only at barriers and shuffles.
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
// 2^value with a pseudo-random relative error within the bound documented for the GPU's instruction. The error is a
// function of the value, so equal values give equal results.
inline float power_of_two(float value) {
  if (value < -126) return 0;
  const unsigned hash = float_bits(value) * 2654435761u;
  const double error = (hash >> 8) * 0x1p-23 - 1;  // in [-1, 1); the factor 0.75 leaves room for rounding to float
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

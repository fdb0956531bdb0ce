// The hardware interface of all device code: indices, barriers, shuffles, atomics, conversions and tensor cores.
//
// NVRTC compiles it for the GPU without any CUDA or host header. A plain C++ compiler gets the same functions from
// csrc/tests/device_host.h, which runs the threads of a block as fibers, so that tests execute the same kernels on a
// machine without a GPU.
#pragma once

#ifndef __CUDACC__
#include "device_host.h"
#else

#define SEED_FAST_DEVICE __device__ __forceinline__
#define SEED_FAST_DEVICE_NOINLINE static __device__ __noinline__
// Declares a kernel of at most `threads` threads per block. The compiler limits its registers so that `blocks` blocks
// fit on a multiprocessor at once.
#define SEED_FAST_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
// A 16-byte aligned array in shared memory: SEED_FAST_SHARED(float, tile, [32][64]);
#define SEED_FAST_SHARED(type, name, extents) __shared__ __align__(16) type name extents
#define SEED_FAST_UNROLL _Pragma("unroll")
#define SEED_FAST_NO_UNROLL _Pragma("unroll 1")

namespace seed_fast::device {

constexpr int kWarp = 32;

SEED_FAST_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SEED_FAST_DEVICE long long block_index_x() { return static_cast<long long>(blockIdx.x); }
SEED_FAST_DEVICE long long block_index_y() { return static_cast<long long>(blockIdx.y); }

// Every thread of the block waits here; shared memory written before is visible after.
SEED_FAST_DEVICE void barrier() { __syncthreads(); }

// The value held by lane (own lane ^ mask); all 32 lanes of the warp take part.
template <class T>
SEED_FAST_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// A mask whose bit i is the vote of lane i; all 32 lanes of the warp take part.
SEED_FAST_DEVICE unsigned ballot(bool vote) { return __ballot_sync(0xffffffffu, vote); }
// Index of the lowest set bit of a value that has one.
SEED_FAST_DEVICE int lowest_bit(unsigned bits) { return __ffs(static_cast<int>(bits)) - 1; }

SEED_FAST_DEVICE void atomic_min(unsigned* address, unsigned value) { atomicMin(address, value); }
// Returns the value before the addition.
SEED_FAST_DEVICE unsigned atomic_add(unsigned* address, unsigned value) { return atomicAdd(address, value); }

SEED_FAST_DEVICE unsigned float_bits(float value) { return __float_as_uint(value); }
SEED_FAST_DEVICE float float_from_bits(unsigned bits) { return __uint_as_float(bits); }

SEED_FAST_DEVICE float infinity() { return __uint_as_float(0x7f800000u); }
SEED_FAST_DEVICE float not_a_number() { return __uint_as_float(0x7fc00000u); }

// binary16 to float32, exact.
SEED_FAST_DEVICE float float_from_half(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// float32 to binary16, rounded to nearest, ties to even. Values above the largest binary16 become infinity.
SEED_FAST_DEVICE unsigned short half_from_float(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}
// Two values rounded to binary16 in one register, as tensor cores expect them: `low` in the low half.
SEED_FAST_DEVICE unsigned half_pair(float low, float high) {
  return half_from_float(low) | static_cast<unsigned>(half_from_float(high)) << 16;
}

// The smallest float32 that is not below the value.
SEED_FAST_DEVICE float float_round_up(double value) { return __double2float_ru(value); }

// a * b + c, rounded once.
SEED_FAST_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SEED_FAST_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// If one operand is NaN, the result is the other one.
SEED_FAST_DEVICE float minimum(float a, float b) { return fminf(a, b); }
SEED_FAST_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }

SEED_FAST_DEVICE float square_root(float a) { return sqrtf(a); }
SEED_FAST_DEVICE double square_root(double a) { return sqrt(a); }

// 2^value with a relative error of at most 2^-22; 0 if the result is below 2^-126.
SEED_FAST_DEVICE float power_of_two(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}

// Tensor cores: C += A B with binary16 A and B and float32 C, executed by all 32 lanes of a warp, which hold fragments
// a, b and c of the matrices. Products are exact. To add them, the hardware aligns all terms to the largest one and
// truncates them, so the error is larger than that of fused multiply-adds: for every four products at most 6 * 2^-23
// times the sum of the magnitudes of all terms. A register of a or b holds two elements that are neighbours along k,
// the first one in its low half. The layouts of the fragments (PTX ISA, "Matrix Fragments for mma"):
//
// m8n8k4 (sm_70; slow on newer GPUs): four independent products of 8x4 by 4x8, one for each quad pair. Quad pair q
// consists of the lanes 4q .. 4q+3 (low) and 16+4q .. 16+4q+3 (high); with h = 0 for low and 4 for high lanes:
//   a[i / 2] half i % 2, i < 4:               A[lane % 4 + h][i]
//   b[i / 2] half i % 2, i < 4, column-major: B[i][lane % 4 + h]
//                               row-major:    B[lane % 4][i + h]
//   c[i], i < 8:                              C[lane % 2 + i / 2 % 2 * 2 + h][i / 4 * 4 + lane / 2 % 2 * 2 + i % 2]
SEED_FAST_DEVICE void mma_m8n8k4(float (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, {%0, %1, %2, %3, %4, %5, %6, %7};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
}
// The same with a row-major B.
SEED_FAST_DEVICE void mma_m8n8k4_row_row(float (&c)[8], const unsigned (&a)[2], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 "
      "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, {%0, %1, %2, %3, %4, %5, %6, %7};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
}

// m16n8k8 (sm_75 and newer; traps on older GPUs): 16x8 by 8x8. With g = lane / 4 and t = lane % 4:
//   a[i], half j: A[g + 8 i][2 t + j]    b half j: B[2 t + j][g]    c[i]: C[g + i / 2 * 8][2 t + i % 2]
SEED_FAST_DEVICE void mma_m16n8k8(float (&c)[4], const unsigned (&a)[2], unsigned b) {
#if __CUDA_ARCH__ >= 750
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(b));
#else
  __trap();
#endif
}

#if __CUDA_ARCH__ >= 800
constexpr bool kHasM16n8k16 = true;
#else
constexpr bool kHasM16n8k16 = false;
#endif

// m16n8k16 (sm_80 and newer; traps on older GPUs): 16x16 by 16x8. With g and t as above:
//   a[i], half j: A[g + i % 2 * 8][2 t + j + i / 2 * 8]    b[i], half j: B[2 t + j + 8 i][g]    c as above
SEED_FAST_DEVICE void mma_m16n8k16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

}  // namespace seed_fast::device

#endif

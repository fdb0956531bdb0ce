// The one header through which device code reaches the hardware.
//
// NVRTC compiles it for the GPU without any CUDA or host header. A plain C++ compiler gets the same names from
// csrc/tests/device_host.h, which runs the threads of a block as fibers: so the tests execute these very kernels on a
// machine without a GPU.
#pragma once

#ifndef __CUDACC__
#include "device_host.h"
#else

#define SEED_FAST_DEVICE __device__ __forceinline__
#define SEED_FAST_DEVICE_NOINLINE static __device__ __noinline__
// A kernel of at most `threads` threads a block; its registers leave room for `blocks` blocks on a multiprocessor.
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

SEED_FAST_DEVICE void atomic_min(unsigned* address, unsigned value) { atomicMin(address, value); }

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

// The smallest float32 that is not below the value.
SEED_FAST_DEVICE float float_round_up(double value) { return __double2float_ru(value); }

// a * b + c, rounded once.
SEED_FAST_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SEED_FAST_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The operand that is not NaN, if one is.
SEED_FAST_DEVICE float minimum(float a, float b) { return fminf(a, b); }
SEED_FAST_DEVICE float maximum(float a, float b) { return fmaxf(a, b); }

SEED_FAST_DEVICE double square_root(double a) { return sqrt(a); }

}  // namespace seed_fast::device

#endif

// nearest_code on the CPU: argmin over k of ||e_k||^2 - 2 z.e_k in exact arithmetic, lowest k on ties.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "dtype.h"

namespace seed_fast {

enum class Isa : int { scalar = 0, avx2 = 1, avx512 = 2, avx512bf16 = 3 };

// Returns the best instruction set that this CPU has and that is compiled in.
Isa best_isa();

// Returns the instruction set of a name: "scalar", "avx2", "avx512" or "avx512bf16"; "" is the best one. Throws
// std::invalid_argument for other names.
Isa parse_isa(const std::string& name);

// Returns how many bytes pack_codebook_cpu writes for a codebook [K, D].
size_t nearest_code_cpu_packed_bytes(int64_t K, int64_t D);

// Packs a codebook [K, D], strides in elements, for searches with this instruction set (others return the same, perhaps
// more slowly). Returns -1, or the first entry whose squared norm is not finite in float32 (then packed must not be
// searched).
int64_t pack_codebook_cpu(const void* codebook, DType dtype, int64_t K, int64_t D, int64_t stride_k, int64_t stride_d,
                          void* packed, int threads, Isa isa);

// Finds the nearest codes of z [N, D], strides in elements: ids [N], and margin [N] or null. Returns -1, or the first
// row without NaN whose squared norm is not finite in float32 (then ids and margin hold nothing of use). Rows with NaN
// get id -1, margin NaN.
int64_t nearest_code_cpu(const void* z, DType dtype, int64_t N, int64_t D, int64_t stride_n, int64_t stride_d,
                         const void* packed, int64_t K, int64_t* ids, float* margin, int threads, Isa isa);

// The same lookup with its epilogue: z_q [N, D] of z's type, contiguous, = the chosen entries; squares [N] = ||e - z||^2.
// Rows with NaN get NaN in both.
int64_t vector_quantize_cpu(const void* z, DType dtype, int64_t N, int64_t D, int64_t stride_n, int64_t stride_d,
                            const void* packed, int64_t K, void* z_q, int64_t* ids, double* squares, int threads,
                            Isa isa);

}  // namespace seed_fast

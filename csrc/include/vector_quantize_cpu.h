// Gradients of vector_quantize on the CPU; its forward is vector_quantize_cpu in nearest_code_cpu.h.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace seed_fast {

// A matrix in memory that belongs to torch; strides in elements.
struct ConstMatrix {
  const void* data;
  int64_t stride_row, stride_column;
};

// z [N, D], codebook [K, D], ids [N] (-1: no entry), grad_z_q [N, D] of z's type. With difference = (e - z) 2 / (N D):
//   grad_z [N, D] = grad_z_q - grad_commit * difference, NaN where there is no entry; of z's type, contiguous, or null
//   grad_codebook [K, D] = sum over the rows of each entry, in order, of grad_codebook_loss * difference; or null
void vector_quantize_backward_cpu(const ConstMatrix& z, const ConstMatrix& codebook, const int64_t* ids,
                                  const ConstMatrix& grad_z_q, double grad_commit, double grad_codebook_loss,
                                  DType z_dtype, DType codebook_dtype, int64_t N, int64_t D, int64_t K, void* grad_z,
                                  void* grad_codebook, int threads);

}  // namespace seed_fast

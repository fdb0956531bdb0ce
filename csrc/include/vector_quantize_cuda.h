// vector_quantize on CUDA; the rules of nearest_code_cuda.h hold: addresses on the current device, everything queued on
// the stream, no allocation, no wait. Matrices have contiguous last axes and rows `stride` elements apart.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace seed_fast {

struct DeviceMatrix {
  const void* data;
  DType dtype;
  int64_t rows, stride;
};

// Bytes of scratch memory of vector_quantize_cuda, beside those of nearest_code_cuda.
int64_t vector_quantize_cuda_workspace_bytes(int64_t N);

// z [N, D], codebook [K, D], ids [N] as nearest_code_cuda left them -> z_q [N, D] of z's type, contiguous (NaN where
// the id is -1); commit, codebook_loss: float32 [], both the mean of (e - z)^2.
void vector_quantize_cuda(const DeviceMatrix& z, const DeviceMatrix& codebook, int64_t D, const int64_t* ids, void* z_q,
                          float* commit, float* codebook_loss, void* workspace, cudaStream_t stream);

// grad_z_q [N, D] of z's type, any strides; grad_commit, grad_codebook_loss: float32 [].
// -> grad_z [N, D] of z's type, grad_codebook [K, D] of the codebook's, both contiguous; null: not wanted. Formulas in
// vector_quantize_cpu.h.
void vector_quantize_backward_cuda(const DeviceMatrix& z, const DeviceMatrix& codebook, int64_t D, const int64_t* ids,
                                   const void* grad_z_q, int64_t grad_stride_row, int64_t grad_stride_column,
                                   const float* grad_commit, const float* grad_codebook_loss, void* grad_z,
                                   void* grad_codebook, cudaStream_t stream);

}  // namespace seed_fast

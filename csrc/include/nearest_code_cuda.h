// nearest_code on CUDA: argmin over k of ||e_k||^2 - 2 z.e_k in exact arithmetic, lowest k on ties. Pointers are
// addresses on the current device. Everything is queued on the stream: no allocation, no wait, so a graph may capture
// it (after a first call, which loads the kernels). Throws cuda::CudaError, and std::invalid_argument for sizes that
// the kernels don't support.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "dtype.h"

namespace seed_fast {

// Bytes that pack_codebook_cuda writes for a codebook [K, D].
int64_t nearest_code_cuda_packed_bytes(int64_t K, int64_t D);

// Packs a codebook [K, D], rows row_stride elements apart, last axis contiguous; `packed` is 16-byte aligned. Its first
// int32 becomes the index of the first entry whose squared norm is not finite in float32, or -1; if there is such an
// entry, a search gives id -1 to all rows.
void pack_codebook_cuda(const void* codebook, DType dtype, int64_t K, int64_t D, int64_t row_stride, void* packed,
                        cudaStream_t stream);

// Bytes of scratch memory of one search on a GPU with this many multiprocessors: O(N).
int64_t nearest_code_cuda_workspace_bytes(int64_t N, int64_t K, int64_t D, int multiprocessors);

// Finds the nearest codes of z [N, D], rows row_stride elements apart, last axis contiguous: ids [N] and, unless it is
// null, margin [N], the second smallest squared distance minus the smallest (+inf if K = 1). A row whose squared norm
// is not finite in float32 gets id -1 and margin NaN.
void nearest_code_cuda(const void* z, DType dtype, int64_t N, int64_t D, int64_t row_stride, const void* packed,
                       int64_t K, int64_t* ids, float* margin, void* workspace, int multiprocessors,
                       cudaStream_t stream);

}  // namespace seed_fast

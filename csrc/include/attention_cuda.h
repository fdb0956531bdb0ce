// attention on CUDA: softmax(scale q k^T) v, per batch and head. Everything is queued on the stream: no allocation, no
// wait, so a graph may capture it (after a first call, which loads the kernel).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention_cpu.h"  // AttentionTensor
#include "dtype.h"

namespace seed_fast {

// q [B, Lq, H, D], k and v [B, Lk, H, D] -> out [B, Lq, H, D] contiguous, all of float32 or all of float16, addresses
// on the current device. The last axis is contiguous; D is a multiple of 8 in [16, 128]; Lk >= 1. With `causal`, query
// i attends to keys 0 .. i only. float16 uses tensor cores if rows are 16-byte aligned. Throws cuda::CudaError, and
// std::invalid_argument for arguments that the kernels don't support.
void attention_cuda(const AttentionTensor& q, const AttentionTensor& k, const AttentionTensor& v, void* out,
                    DType dtype, int64_t B, int64_t Lq, int64_t Lk, int64_t H, int64_t D, bool causal, float scale,
                    cudaStream_t stream);

}  // namespace seed_fast

// add_layer_norm on CUDA. Everything is queued on the stream: no allocation, no wait, so a graph may capture it (after
// a first call, which loads the kernel).
#pragma once

#include <cuda_runtime_api.h>

#include "add_layer_norm_cpu.h"  // AddLayerNorm

namespace seed_fast {

// Computes what add_layer_norm_cpu does, with addresses on the current device and a contiguous y. Throws
// cuda::CudaError, and std::invalid_argument for sizes beyond 2^31 - 1.
void add_layer_norm_cuda(const AddLayerNorm& problem, cudaStream_t stream);

}  // namespace seed_fast

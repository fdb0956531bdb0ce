// bias_gelu on CUDA. Everything is queued on the stream: no allocation, no wait, so a graph may capture it (after a
// first call, which loads the kernel).
#pragma once

#include <cuda_runtime_api.h>

#include "bias_gelu_cpu.h"  // BiasGelu

namespace seed_fast {

// Computes what bias_gelu_cpu does, with addresses on the current device. Throws cuda::CudaError, and
// std::invalid_argument for sizes beyond 2^31 - 1.
void bias_gelu_cuda(const BiasGelu& problem, cudaStream_t stream);

}  // namespace seed_fast

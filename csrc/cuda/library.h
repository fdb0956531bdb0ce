// Host side of the embedded device code: loads an image when its first kernel is requested. The module can be imported
// without a GPU or driver; if one is missing, requesting a kernel throws CudaError.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if CUDART_VERSION < 12080
#error "seed_fast needs the CUDA runtime 12.8 or newer (cudaLibraryLoadData)"
#endif

namespace seed_fast::cuda {

// A CUDA call that failed: what was tried, the runtime's error name and text, and what helps. RuntimeError in Python.
class CudaError : public std::runtime_error {
 public:
  CudaError(cudaError_t code, const std::string& doing);
  explicit CudaError(const std::string& message) : std::runtime_error(message) {}
};

// Throws CudaError unless `code` is success. `doing` completes its message after "while ", such as "launching
// nearest_code_fwd_kernel".
void check(cudaError_t code, const char* doing);

// Handle of an extern "C" kernel of any csrc/cuda/*.cu. The first call for a source loads its image into the driver
// (not allowed during stream capture); later calls are a map lookup. Safe from any thread.
// SEED_FAST_CUDA_ARCH=70, read at the first call, loads the compute_70 PTX in place of the native image.
cudaKernel_t get_kernel(const char* name);

// The architecture for which kernels are chosen: the compute capability of the current device, such as 70 or 89, or 70
// with SEED_FAST_CUDA_ARCH=70. It is queried once per device.
int architecture();

// Lets `kernel` use `bytes` of dynamic shared memory on the current device. CUDA requires this call above 48 KiB.
void allow_dynamic_shared_memory(cudaKernel_t kernel, int bytes);

// (true, "") if kernels of this module can run here, otherwise (false, reason). Never throws.
std::pair<bool, std::string> available();

// One csrc/cuda/*.cu as the build embedded it.
struct Image {
  const char* source;
  const void* native;  // fat binary: a cubin for each architecture, and PTX for newer ones
  const void* ptx70;   // fat binary: compute_70 PTX alone
  std::vector<std::string> kernels;
};

// Defined in the generated device_code.cpp.
const std::vector<Image>& embedded_images();
const char* device_code_manifest();  // JSON

}  // namespace seed_fast::cuda

#include "library.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>

namespace seed_fast::cuda {
namespace {

const char* hint(cudaError_t code) {
  switch (code) {
    case cudaErrorInsufficientDriver:  // also what the runtime says when there is no driver at all
      return "no NVIDIA driver, or one too old for CUDA 12 (525 or newer is needed)";
    case cudaErrorNoDevice: return "the driver sees no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES";
    case cudaErrorUnsupportedPtxVersion:
      return "the driver is too old for this PTX (575 or newer is needed); native images need only 525";
    case cudaErrorNoKernelImageForDevice: return "this GPU is older than sm_70, the first architecture that is built";
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureImplicit:
      return "a kernel was loaded during stream capture; run the op once before capturing";
    default: return nullptr;
  }
}

std::string describe(cudaError_t code, const std::string& doing) {
  std::string text = "CUDA error " + std::to_string(static_cast<int>(code)) + " (" + cudaGetErrorName(code) + ": " +
                     cudaGetErrorString(code) + ") while " + doing;
  if (const char* help = hint(code)) text += ": " + std::string(help);
  return text;
}

bool wants_ptx70() {
  const char* value = std::getenv("SEED_FAST_CUDA_ARCH");
  if (value == nullptr || *value == '\0') return false;
  if (std::string(value) == "70") return true;
  throw CudaError(std::string("SEED_FAST_CUDA_ARCH: expected 70 or nothing, got ") + value);
}

// The kernels requested so far, and the library of each image that they come from. Libraries stay loaded until the
// process ends, because unloading them in a static destructor would race with the driver's own shutdown.
class Registry {
 public:
  Registry() : ptx70_(wants_ptx70()), libraries_(embedded_images().size(), nullptr) {}

  cudaKernel_t kernel(const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = kernels_.find(name); found != kernels_.end()) return found->second;
    const std::size_t index = owner(name);
    cudaKernel_t handle = nullptr;
    const std::string doing = "loading kernel " + name + " from " + embedded_images()[index].source;
    check(cudaLibraryGetKernel(&handle, library(index), name.c_str()), doing.c_str());
    kernels_.emplace(name, handle);
    return handle;
  }

 private:
  static std::size_t owner(const std::string& name) {
    const auto& images = embedded_images();
    std::string known;
    for (std::size_t index = 0; index < images.size(); ++index) {
      for (const std::string& kernel : images[index].kernels) {
        if (kernel == name) return index;
        known += known.empty() ? kernel : ", " + kernel;
      }
    }
    throw CudaError("no kernel " + name + " in this build; it has: " + (known.empty() ? "none" : known));
  }

  cudaLibrary_t library(std::size_t index) {
    if (libraries_[index] == nullptr) {
      const Image& image = embedded_images()[index];
      const std::string doing =
          std::string("loading the ") + (ptx70_ ? "compute_70" : "native") + " image of " + image.source;
      check(cudaLibraryLoadData(&libraries_[index], ptx70_ ? image.ptx70 : image.native, nullptr, nullptr, 0, nullptr,
                                nullptr, 0),
            doing.c_str());
    }
    return libraries_[index];
  }

  std::mutex mutex_;
  const bool ptx70_;
  std::vector<cudaLibrary_t> libraries_;
  std::map<std::string, cudaKernel_t> kernels_;
};

}  // namespace

CudaError::CudaError(cudaError_t code, const std::string& doing) : std::runtime_error(describe(code, doing)) {}

void check(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which a later successful call would otherwise report again
  throw CudaError(code, doing);
}

cudaKernel_t get_kernel(const char* name) {
  static Registry* const registry = new Registry();  // never destroyed, see Registry
  return registry->kernel(name);
}

int architecture() {
  static const bool forced = wants_ptx70();
  if (forced) return 70;
  static std::array<std::atomic<int>, 64> known{};  // by device; 0: not asked yet
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  const std::size_t index = static_cast<std::size_t>(device);
  if (index < known.size() && known[index] != 0) return known[index];
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking for the architecture");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "asking for the architecture");
  if (index < known.size()) known[index] = 10 * major + minor;
  return 10 * major + minor;
}

void allow_dynamic_shared_memory(cudaKernel_t kernel, int bytes) {
  int device = 0;
  check(cudaGetDevice(&device), "asking for the current device");
  const std::string doing = "asking for " + std::to_string(bytes) + " bytes of shared memory";
  check(cudaKernelSetAttributeForDevice(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes, device),
        doing.c_str());
}

std::pair<bool, std::string> available() {
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    cudaGetLastError();
    return {false, describe(code, "looking for a GPU")};
  }
  int newest = 0;
  for (int device = 0; device < count; ++device) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major > newest) {
      newest = major;
    }
  }
  if (newest < 7) return {false, describe(cudaErrorNoKernelImageForDevice, "looking for a GPU")};
  if (embedded_images().empty()) return {false, "this build embeds no device code"};
  return {true, ""};
}

}  // namespace seed_fast::cuda

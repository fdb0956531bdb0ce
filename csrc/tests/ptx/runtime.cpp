#include "runtime.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>

#include "library.h"

namespace ptx {
namespace {

// One device per architecture, because library.cpp caches the architecture of each device.
constexpr std::array<int, 3> kArchitectures = {70, 75, 80};
int current_device = 0;

struct Kernel {
  DeviceImage* image;
  std::string name;
};

// The names of the kernels in a PTX text.
std::vector<std::string> kernel_names(const std::string& text) {
  static const std::regex entry(R"(\.entry\s+(\w+))");
  std::vector<std::string> names;
  for (auto match = std::sregex_iterator(text.begin(), text.end(), entry); match != std::sregex_iterator(); ++match) {
    names.push_back((*match)[1]);
  }
  return names;
}

}  // namespace

void DeviceImage::replace(int architecture, const std::string& text) {
  texts[architecture] = text;
  programs.erase(architecture);
}

Program& DeviceImage::program_for(int architecture) {
  auto text = texts.upper_bound(architecture);
  if (text == texts.begin()) throw Fault(source + ".cu has no PTX for sm_" + std::to_string(architecture));
  --text;
  std::unique_ptr<Program>& program = programs[text->first];
  if (!program) program = Program::parse(text->second);
  return *program;
}

Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

std::map<std::string, DeviceImage>& images() {
  static std::map<std::string, DeviceImage> all = [] {
    std::map<std::string, DeviceImage> found;
    static const std::regex pattern(R"((\w+)\.compute_(\d+)\.ptx)");
    for (const auto& file : std::filesystem::directory_iterator(SEED_FAST_PTX_FOLDER)) {
      std::smatch match;
      const std::string name = file.path().filename().string();
      if (!std::regex_match(name, match, pattern)) continue;
      std::ostringstream text;
      text << std::ifstream(file.path()).rdbuf();
      DeviceImage& image = found[match[1]];
      image.source = match[1];
      image.texts[std::stoi(match[2])] = text.str();
    }
    return found;
  }();
  return all;
}

void set_architecture(int architecture) {
  const auto found = std::find(kArchitectures.begin(), kArchitectures.end(), architecture);
  if (found == kArchitectures.end()) throw Fault("no device of sm_" + std::to_string(architecture));
  current_device = static_cast<int>(found - kArchitectures.begin());
}

}  // namespace ptx

namespace seed_fast::cuda {

const std::vector<Image>& embedded_images() {
  static const std::vector<Image> all = [] {
    std::vector<Image> list;
    for (auto& [source, image] : ptx::images()) {
      list.push_back({image.source.c_str(), &image, &image, ptx::kernel_names(image.texts.begin()->second)});
    }
    return list;
  }();
  return all;
}

const char* device_code_manifest() { return "{}"; }

}  // namespace seed_fast::cuda

// -- functions of the CUDA runtime: a library is a DeviceImage, a kernel a ptx::Kernel --------------------------------

extern "C" {

cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void* code, cudaJitOption*, void**, unsigned,
                                cudaLibraryOption*, void**, unsigned) {
  *library = static_cast<cudaLibrary_t>(const_cast<void*>(code));
  return cudaSuccess;
}

cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t library, const char* name) {
  *kernel = reinterpret_cast<cudaKernel_t>(new ptx::Kernel{reinterpret_cast<ptx::DeviceImage*>(library), name});
  return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared_bytes,
                             cudaStream_t) {
  const auto& kernel = *static_cast<const ptx::Kernel*>(function);
  ptx::Program& program = kernel.image->program_for(ptx::kArchitectures[static_cast<std::size_t>(ptx::current_device)]);
  // Lay the arguments out as the PTX declares the kernel's parameters.
  std::vector<uint8_t> bytes;
  const auto& parameters = program.kernel(kernel.name).parameters;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto offset = static_cast<std::size_t>(parameters[i].offset),
               size = static_cast<std::size_t>(parameters[i].size);
    bytes.resize(offset + size);
    std::memcpy(&bytes[offset], arguments[i], size);
  }
  ptx::machine().launch(program, kernel.name, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
                        bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t count, cudaStream_t) {
  const auto address = reinterpret_cast<uint64_t>(to);
  ptx::Segment* const segment = ptx::machine().memory.find(address);
  if (segment == nullptr || count > segment->size - (address - segment->base)) {
    throw ptx::Fault("cudaMemsetAsync: " + std::to_string(count) + " bytes at " + ptx::hexadecimal(address) +
                     " are not all allocated");
  }
  std::memset(to, value, count);
  segment->define(address - segment->base, count, true);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = ptx::current_device;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(ptx::kArchitectures.size());
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  const int architecture = ptx::kArchitectures[static_cast<std::size_t>(device)];
  if (attribute != cudaDevAttrComputeCapabilityMajor && attribute != cudaDevAttrComputeCapabilityMinor)
    return cudaErrorInvalidValue;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? architecture / 10 : architecture % 10;
  return cudaSuccess;
}

cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t, cudaFuncAttribute, int, int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
const char* cudaGetErrorString(cudaError_t) { return "an error of the stand-in for the CUDA runtime"; }

}  // extern "C"

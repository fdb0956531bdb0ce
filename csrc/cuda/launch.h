// Launching a kernel by name.
#pragma once

#include <cstdint>
#include <string>

#include "library.h"

namespace seed_fast::cuda {

// Queues a grid of the kernel on the stream; `args` have exactly the types of its parameters.
template <class... Args>
void launch(const char* name, dim3 grid, int threads, cudaStream_t stream, Args... args) {
  void* pointers[] = {&args...};
  const void* const kernel = reinterpret_cast<const void*>(get_kernel(name));
  const std::string doing = std::string("launching ") + name;
  check(cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), pointers, 0, stream), doing.c_str());
}

// The same with a one-dimensional grid.
template <class... Args>
void launch(const char* name, int64_t blocks, int threads, cudaStream_t stream, Args... args) {
  launch(name, dim3(static_cast<unsigned>(blocks)), threads, stream, args...);
}

}  // namespace seed_fast::cuda

// Chooses the bias_gelu kernel for a problem, and its grid. This is host code without CUDA. The plan is a pure function
// of its arguments, so that a captured graph can be replayed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "bias_gelu.h"
#include "bias_gelu_cpu.h"  // BiasGelu

namespace seed_fast::bias_gelu {

constexpr int64_t kMostRowsPerBlock = 8;  // enough to amortise loading the bias; more would make too few blocks
constexpr int64_t kWantedBlocks = 640;    // four for each multiprocessor of a large GPU
constexpr int64_t kMostBlocksY = 65535;

struct Plan {
  std::string kernel;
  Problem problem;
  int64_t blocks_x, blocks_y;

  explicit Plan(const BiasGelu& p) {
    const int64_t vector = p.x_dtype == DType::float32 ? 4 : 8;  // elements in 16 bytes
    const auto aligned = [&](const void* data, int64_t stride) {
      return reinterpret_cast<uintptr_t>(data) % 16 == 0 && (p.N == 1 || stride % vector == 0);
    };
    const bool vectors = p.D % vector == 0 && p.bias_dtype == p.x_dtype && aligned(p.x, p.x_stride) &&
                         aligned(p.y, p.y_stride) && aligned(p.bias, 0);
    const char* const types[] = {"float32", "float16", "bfloat16"};
    kernel = std::string("bias_gelu_") + (vectors ? types[int(p.x_dtype)] : "any") + "_kernel";
    const int64_t columns = kThreads * (vectors ? vector : 1);
    blocks_x = (p.D + columns - 1) / columns;
    int64_t rows = std::clamp<int64_t>(p.N * blocks_x / kWantedBlocks, 1, kMostRowsPerBlock);
    rows = std::max(rows, (p.N + kMostBlocksY - 1) / kMostBlocksY);
    blocks_y = (p.N + rows - 1) / rows;
    problem = {p.x, p.bias, p.y, p.N, p.x_stride, p.y_stride, int(p.x_dtype), int(p.bias_dtype), int(p.D), int(rows)};
  }
};

}  // namespace seed_fast::bias_gelu

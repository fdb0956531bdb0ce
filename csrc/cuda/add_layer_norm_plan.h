// Chooses the add_layer_norm kernel for a problem, and its number of blocks. This is host code without CUDA. The plan
// is a pure function of its arguments, so that a captured graph can be replayed.
#pragma once

#include <cstdint>
#include <string>

#include "add_layer_norm.h"
#include "add_layer_norm_cpu.h"  // AddLayerNorm

namespace seed_fast::add_layer_norm {

struct Plan {
  std::string kernel;
  Problem problem;
  int threads;
  int64_t blocks;

  explicit Plan(const AddLayerNorm& p) {
    problem = {
        p.x.data,    p.delta.data,   p.weight,        p.bias,         p.stream.data,      p.y.data,       p.N,
        p.x.stride,  p.delta.stride, p.stream.stride, int(p.x.dtype), int(p.delta.dtype), int(p.y.dtype), int(p.D),
        p.post_norm, p.eps};
    const auto aligned = [&](const NormMatrix& matrix) {
      return reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && (p.N == 1 || matrix.stride % 4 == 0);
    };
    const auto vector_aligned = [](const float* values) { return reinterpret_cast<uintptr_t>(values) % 16 == 0; };
    const bool vectors = p.D % 4 == 0 && p.D <= kMaxWideDim && p.x.dtype == DType::float32 &&
                         p.delta.dtype == p.y.dtype && aligned(p.x) && aligned(p.delta) && aligned(p.stream) &&
                         aligned(p.y) && vector_aligned(p.weight) && vector_aligned(p.bias);
    const bool wide = p.D > kMaxDim;
    const char* const types[] = {"float32", "float16", "bfloat16"};
    const std::string kind = std::string(wide ? "wide_" : "") + types[int(p.y.dtype)];
    kernel = "add_layer_norm_" + (vectors ? kind : "any") + "_kernel";
    threads = vectors && wide ? kWideThreads : kThreads;
    blocks = p.N;
  }
};

}  // namespace seed_fast::add_layer_norm

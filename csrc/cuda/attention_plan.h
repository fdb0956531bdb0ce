// Chooses the attention kernel for a problem, and its number of blocks. This is host code without CUDA. The plan is a
// pure function of its arguments, so that a captured graph can be replayed.
#pragma once

#include <cstdint>
#include <string>

#include "attention.h"
#include "attention_cpu.h"  // AttentionTensor

namespace seed_fast::attention {

struct Plan {
  std::string kernel;
  Problem problem;
  int threads;
  int64_t blocks;

  Plan(const AttentionTensor& q, const AttentionTensor& k, const AttentionTensor& v, void* out, DType dtype, int64_t B,
       int64_t Lq, int64_t Lk, int64_t H, int64_t D, bool causal, float scale) {
    const auto tensor = [](const AttentionTensor& x) { return Tensor{x.data, x.stride_b, x.stride_l, x.stride_h}; };
    const int64_t vector = dtype == DType::float32 ? 4 : 8;  // elements in 16 bytes
    const auto aligned = [&](const AttentionTensor& x, int64_t length) {
      return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && (B == 1 || x.stride_b % vector == 0) &&
             (length == 1 || x.stride_l % vector == 0) && (H == 1 || x.stride_h % vector == 0);
    };
    const bool vectors = aligned(q, Lq) && aligned(k, Lk) && aligned(v, Lk);

    std::string kind = dtype == DType::float32 ? "float32" : "float16";
    int64_t rows = 32, width = (D + 31) / 32 * 32;
    threads = kThreads;
    if (!vectors) {
      kind += "_unaligned";
    } else if (dtype == DType::float32) {
      rows = Lq <= 64 ? 32 : 96;
      kind += "_rows" + std::to_string(rows);
    } else {
      width = D <= 32 ? 32 : D <= 64 ? 64 : D <= 88 ? 88 : 128;
      const bool few = Lk <= kFewKeys || (Lk <= kMoreKeys && Lq <= 2 * kFewRows);
      rows = few ? kFewRows : kManyRows;
      threads = 32 * (few ? kFewWarps : kManyWarps);
      kind = few ? "sm70_keys" + std::to_string(Lk <= kFewKeys ? kFewKeys : kMoreKeys) : "sm70_many";
    }
    kernel = "attention_fwd_" + kind + "_w" + std::to_string(width) + "_kernel";
    const int64_t query_blocks = (Lq + rows - 1) / rows;
    blocks = B * H * query_blocks;
    problem.q = tensor(q), problem.k = tensor(k), problem.v = tensor(v), problem.out = out;
    problem.lq = static_cast<int>(Lq), problem.lk = static_cast<int>(Lk), problem.d = static_cast<int>(D);
    problem.heads = static_cast<unsigned>(H), problem.query_blocks = static_cast<unsigned>(query_blocks);
    problem.causal = causal, problem.scale = scale * kLog2e;
  }
};

}  // namespace seed_fast::attention

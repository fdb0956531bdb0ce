// attention on the CPU: softmax(scale q k^T) v, per batch and head.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "nearest_code_cpu.h"  // Isa

namespace seed_fast {

// A tensor [B, L, H, D] of float32, float16 or bfloat16; strides in elements.
struct AttentionTensor {
  const void* data;
  int64_t stride_b, stride_l, stride_h, stride_d;
};

// q [B, Lq, H, D], k and v [B, Lk, H, D] -> out [B, Lq, H, D] contiguous, of the same type. D is a multiple of 8 in
// [16, 128], Lk >= 1. With `causal`, query i attends to keys 0 .. i only. lse [B, H, Lq], or null: log of the sum of
// exp(scores).
void attention_cpu(const AttentionTensor& q, const AttentionTensor& k, const AttentionTensor& v, void* out, float* lse,
                   DType dtype, int64_t B, int64_t Lq, int64_t Lk, int64_t H, int64_t D, bool causal, float scale,
                   int threads, Isa isa);

}  // namespace seed_fast

// What one work item of attention reads and writes, and the kernel that each instruction set provides.
//
// A work item is (batch, head, block of up to kBlock queries). Each lane of a register holds another query, so softmax
// over the keys needs no sum across lanes, and K and V are read without being rearranged:
//   scores [keys, kBlock] = K Q^T      each K element is broadcast against a register of queries
//   out [queries, D] = P V             each weight is broadcast against a register of V
#pragma once

#include <cstdint>

#include "dtype.h"

namespace seed_fast {

constexpr int kBlock = 32;   // largest number of queries per work item
constexpr int kChunk = 512;  // keys whose scores are held at a time; up to this many keys need no rescaling
constexpr int kMaxHeadDim = 128;

// A tensor [B, L, H, D]; strides count bytes.
struct AttentionOperand {
  const char* data;
  int64_t stride_b, stride_l, stride_h, stride_d;
};

struct AttentionProblem {
  AttentionOperand q, k, v;
  char* out;   // [B, Lq, H, D] contiguous
  float* lse;  // [B, H, Lq] log of the sum of exp(scores), for the backward pass, or null
  DType dtype;
  int64_t B, H, Lq, Lk, D;
  float scale;
  bool causal;
  int64_t block;    // queries per work item
  bool contiguous;  // true if the last axis of q, k and v is contiguous
};

// Scratch memory of one thread, uninitialised. It is about half a megabyte, but with few keys only a small part is
// used.
struct alignas(64) AttentionScratch {
  float queries[kMaxHeadDim * kBlock];  // [D, kBlock]
  float scores[kChunk * kBlock];        // [keys, kBlock]
  float out[kBlock * kMaxHeadDim];      // [kBlock, D]
  float largest[kBlock], sum[kBlock], factor[kBlock];
  float keys[kChunk * kMaxHeadDim];    // [keys, D], K as contiguous float32, if it isn't in memory
  float values[kChunk * kMaxHeadDim];  // [keys, D], the same for V, or pairs of bfloat16 rows [keys / 2, D]
};

// Work items are numbered with the query block fastest, then the head, then the batch.
using AttentionKernel = void (*)(const AttentionProblem& problem, int64_t item, AttentionScratch& scratch);

extern const AttentionKernel attention_scalar;
extern const AttentionKernel attention_avx2;
extern const AttentionKernel attention_avx512;
extern const AttentionKernel attention_avx512bf16;  // only for bfloat16 with a contiguous last axis

}  // namespace seed_fast

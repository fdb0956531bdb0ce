// What the attention kernels and their launcher share: the problem, and the sizes of blocks.
#pragma once

namespace seed_fast::attention {

// A tensor [B, L, H, D] with a contiguous last axis; strides in elements.
struct Tensor {
  const void* data;
  long long stride_b, stride_l, stride_h;
};

// The only argument of every kernel. Inputs: q [B, Lq, H, D], k and v [B, Lk, H, D]. Output: out [B, Lq, H, D],
// contiguous.
struct Problem {
  Tensor q, k, v;
  void* out;
  int lq, lk;
  unsigned heads;
  unsigned query_blocks;  // blocks per head: neighbours in the grid, so that the head's keys stay in the L2 cache
  int d;
  int causal;   // query i attends to keys 0 .. i only
  float scale;  // softmax scale times log2(e), because weights are computed as powers of two
};

constexpr int kThreads = 128;  // per block of attention.cu
// Blocks of attend_few (attention_sm70.cu): 32 queries, whose keys are divided among four warps. The number of keys for
// which its two variants have room.
constexpr int kFewWarps = 4, kFewRows = 32, kFewKeys = 32, kMoreKeys = 288;
// Blocks of attend_many: 32 queries for each of three warps, any number of keys.
constexpr int kManyWarps = 3, kManyRows = 96;

constexpr int kMinDim = 16, kMaxDim = 128;  // in steps of 8
constexpr float kLog2e = 0x1.715476p+0f;

}  // namespace seed_fast::attention

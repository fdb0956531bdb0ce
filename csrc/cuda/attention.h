// What the attention kernels and their launcher share: the problem, and the sizes of blocks.
#pragma once

namespace seed_fast::attention {

// A tensor [B, L, H, D] with a contiguous last axis; strides in elements.
struct Tensor {
  const void* data;
  long long stride_b, stride_l, stride_h;
};

// The one argument of every kernel. q [B, Lq, H, D], k and v [B, Lk, H, D], out [B, Lq, H, D] contiguous.
struct Problem {
  Tensor q, k, v;
  void* out;
  int lq, lk;
  unsigned heads, query_blocks;  // of one head: neighbours in the grid, so that its keys stay in the L2 cache
  int d;
  int causal;   // query i sees keys 0 .. i
  float scale;  // of the scores, times log2(e): weights are powers of two
};

// Blocks of attention.cu, and of attention_sm70.cu: 32 queries whose keys four warps share out, or 32 queries a warp.
constexpr int kThreads = 128;
constexpr int kFewWarps = 4, kFewRows = 32, kFewKeys = 32, kMoreKeys = 288;
constexpr int kManyWarps = 3, kManyRows = 96;

constexpr int kMinDim = 16, kMaxDim = 128;  // in steps of 8
constexpr float kLog2e = 0x1.715476p+0f;

}  // namespace seed_fast::attention

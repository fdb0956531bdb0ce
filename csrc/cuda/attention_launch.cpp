#include <limits>
#include <stdexcept>
#include <string>

#include "attention_cuda.h"
#include "attention_plan.h"
#include "launch.h"

namespace seed_fast {
namespace {

void check(bool good, const char* expected, int64_t got) {
  if (good) return;
  throw std::invalid_argument(std::string("attention: the CUDA kernels take ") + expected + ", got " +
                              std::to_string(got));
}

}  // namespace

void attention_cuda(const AttentionTensor& q, const AttentionTensor& k, const AttentionTensor& v, void* out,
                    DType dtype, int64_t B, int64_t Lq, int64_t Lk, int64_t H, int64_t D, bool causal, float scale,
                    cudaStream_t stream) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  constexpr int64_t kLongest = kMost - attention::kMoreKeys;  // a kernel looks one tile beyond the last row
  if (dtype == DType::bfloat16) throw std::invalid_argument("attention: the CUDA kernels don't take bfloat16");
  for (const AttentionTensor* x : {&q, &k, &v}) check(x->stride_d == 1, "a last axis of stride 1", x->stride_d);
  check(Lq >= 0 && Lq <= kLongest, "at most 2^31 - 289 queries", Lq);
  check(Lk >= 1 && Lk <= kLongest, "1 to 2^31 - 289 keys", Lk);
  check(D >= attention::kMinDim && D <= attention::kMaxDim && D % 8 == 0, "head widths 16, 24, ... 128", D);
  check(H >= 0 && H * D <= kMost, "up to 2^31 - 1 elements in a row", H * D);
  if (B * Lq * H == 0) return;

  const attention::Plan plan(q, k, v, out, dtype, B, Lq, Lk, H, D, causal, scale);
  check(plan.blocks <= kMost, "up to 2^31 - 1 blocks of queries", plan.blocks);
  cuda::launch(plan.kernel.c_str(), plan.blocks, plan.threads, stream, plan.problem);
}

}  // namespace seed_fast

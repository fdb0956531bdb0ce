#include <limits>
#include <stdexcept>
#include <string>

#include "attention_cuda.h"
#include "attention_plan.h"
#include "launch.h"

namespace seed_fast {
namespace {

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return;
  throw std::invalid_argument(std::string("attention: the CUDA kernels take ") + name + " from " + std::to_string(low) +
                              " to " + std::to_string(high) + ", got " + std::to_string(value));
}

}  // namespace

void attention_cuda(const AttentionTensor& q, const AttentionTensor& k, const AttentionTensor& v, void* out,
                    DType dtype, int64_t B, int64_t Lq, int64_t Lk, int64_t H, int64_t D, bool causal, float scale,
                    cudaStream_t stream) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  constexpr int64_t kLongest = kMost - attention::kMoreKeys;  // a kernel looks one tile beyond the last row
  if (dtype == DType::bfloat16) throw std::invalid_argument("attention: the CUDA kernels don't take bfloat16");
  check_range("strides of the last axis", q.stride_d, 1, 1);
  check_range("strides of the last axis", k.stride_d, 1, 1);
  check_range("strides of the last axis", v.stride_d, 1, 1);
  check_range("Lq", Lq, 0, kLongest);
  check_range("Lk", Lk, 1, kLongest);
  check_range("Dh", D, attention::kMinDim, attention::kMaxDim);
  check_range("Dh modulo 8", D % 8, 0, 0);
  check_range("H * Dh", H * D, 0, kMost);
  if (B * Lq * H == 0) return;

  const attention::Plan plan(q, k, v, out, dtype, B, Lq, Lk, H, D, causal, scale);
  check_range("blocks", plan.blocks, 1, kMost);
  cuda::launch(plan.kernel.c_str(), plan.blocks, plan.threads, stream, plan.problem);
}

}  // namespace seed_fast

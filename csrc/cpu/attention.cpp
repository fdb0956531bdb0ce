// attention on the CPU: the split of the work over threads, and the choice of instruction set.
#include <algorithm>
#include <memory>

#include "attention_cpu.h"
#include "attention_layout.h"
#include "cpu_features.h"
#include "float_mode.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kRuns = 8;  // runs of work items per thread: several, so that faster threads can take more of them

AttentionKernel kernel_for(Isa isa, const AttentionProblem& problem) {
#if defined(__x86_64__)
  switch (std::min(isa, best_isa())) {
    case Isa::avx512bf16:
      return problem.dtype == DType::bfloat16 && problem.contiguous ? attention_avx512bf16 : attention_avx512;
    case Isa::avx512: return attention_avx512;
    case Isa::avx2: return attention_avx2;
    default: break;
  }
#else
  (void)isa;
  (void)problem;
#endif
  return attention_scalar;
}

}  // namespace

void attention_cpu(const AttentionTensor& q, const AttentionTensor& k, const AttentionTensor& v, void* out, float* lse,
                   DType dtype, int64_t B, int64_t Lq, int64_t Lk, int64_t H, int64_t D, bool causal, float scale,
                   int threads, Isa isa) {
  const int64_t bytes = dtype == DType::float32 ? 4 : 2;
  const auto operand = [&](const AttentionTensor& x) {
    return AttentionOperand{static_cast<const char*>(x.data), x.stride_b * bytes, x.stride_l * bytes,
                            x.stride_h * bytes, x.stride_d * bytes};
  };
  AttentionProblem problem{operand(q),
                           operand(k),
                           operand(v),
                           static_cast<char*>(out),
                           lse,
                           dtype,
                           B,
                           H,
                           Lq,
                           Lk,
                           D,
                           scale,
                           causal,
                           kBlock,
                           q.stride_d == 1 && k.stride_d == 1 && v.stride_d == 1};
  // With few heads and queries, as of one image, halve the blocks so that every thread has work.
  if (B * H * ((Lq + kBlock - 1) / kBlock) < 2 * threads) problem.block = kBlock / 2;
  const int64_t items = B * H * ((Lq + problem.block - 1) / problem.block);
  const AttentionKernel kernel = kernel_for(isa, problem);
  // Neighbouring work items use the same or adjoining keys and values, so a thread takes a run of them.
  const int64_t run = std::max<int64_t>(1, items / (kRuns * threads));
  parallel_for((items + run - 1) / run, threads, [&](int64_t part) {
    const FloatMode mode;
    thread_local std::unique_ptr<AttentionScratch> scratch(new AttentionScratch);
    for (int64_t item = part * run; item < std::min(items, (part + 1) * run); ++item) kernel(problem, item, *scratch);
  });
}

}  // namespace seed_fast

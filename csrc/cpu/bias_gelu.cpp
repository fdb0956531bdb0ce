// bias_gelu on the CPU: the split of the rows over threads, and the choice of instruction set.
#include "bias_gelu_cpu.h"

#include <algorithm>
#include <vector>

#include "bias_gelu_layout.h"
#include "float_mode.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kRuns = 4;               // runs of rows per thread, so that a slow core costs little
constexpr int64_t kFewElements = 8 << 10;  // below, waking another thread takes longer than the work

BiasGeluKernel kernel_for(Isa isa) {
#if defined(__x86_64__)
  isa = std::min(isa, best_isa());
  if (isa >= Isa::avx512) return bias_gelu_avx512;
  if (isa == Isa::avx2) return bias_gelu_avx2;
#else
  (void)isa;
#endif
  return bias_gelu_scalar;
}

}  // namespace

void bias_gelu_cpu(const BiasGelu& problem, int threads, Isa isa) {
  const BiasGeluKernel kernel = kernel_for(isa);
  std::vector<float> bias(size_t(problem.D));
  for (int64_t at = 0; at < problem.D; ++at) bias[size_t(at)] = load_as_float(problem.bias, at, problem.bias_dtype);
  if (problem.N * problem.D < kFewElements) threads = 1;
  const int64_t run = threads == 1 ? problem.N : std::max<int64_t>(1, problem.N / (kRuns * threads));
  if (run == 0 || problem.D == 0) return;
  parallel_for((problem.N + run - 1) / run, threads, [&](int64_t part) {
    const FloatMode mode;
    for (int64_t row = part * run; row < std::min(problem.N, (part + 1) * run); ++row)
      kernel(problem, bias.data(), row);
  });
}

}  // namespace seed_fast

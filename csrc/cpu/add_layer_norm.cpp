// add_layer_norm on the CPU: the split of the rows over threads, and the choice of instruction set.
#include "add_layer_norm_cpu.h"

#include <algorithm>
#include <vector>

#include "add_layer_norm_layout.h"
#include "float_mode.h"
#include "thread_pool.h"

namespace seed_fast {
namespace {

constexpr int64_t kRuns = 4;                // runs of rows per thread: several, so that faster threads can take more
constexpr int64_t kFewElements = 16 << 10;  // with fewer, waking another thread takes longer than the work

AddLayerNormKernel kernel_for(Isa isa) {
#if defined(__x86_64__)
  isa = std::min(isa, best_isa());
  if (isa >= Isa::avx512) return add_layer_norm_avx512;
  if (isa == Isa::avx2) return add_layer_norm_avx2;
#else
  (void)isa;
#endif
  return add_layer_norm_scalar;
}

}  // namespace

void add_layer_norm_cpu(const AddLayerNorm& problem, int threads, Isa isa) {
  const AddLayerNormKernel kernel = kernel_for(isa);
  if (problem.N * problem.D < kFewElements) threads = 1;
  const int64_t run = threads == 1 ? problem.N : std::max<int64_t>(1, problem.N / (kRuns * threads));
  if (run == 0 || problem.D == 0) return;
  parallel_for((problem.N + run - 1) / run, threads, [&](int64_t part) {
    const FloatMode mode;
    thread_local std::vector<float> values;
    values.resize(size_t(problem.D));
    for (int64_t row = part * run; row < std::min(problem.N, (part + 1) * run); ++row)
      kernel(problem, row, values.data());
  });
}

}  // namespace seed_fast

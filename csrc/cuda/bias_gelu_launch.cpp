#include <limits>
#include <stdexcept>

#include "bias_gelu_cuda.h"
#include "bias_gelu_plan.h"
#include "launch.h"

namespace seed_fast {

void bias_gelu_cuda(const BiasGelu& problem, cudaStream_t stream) {
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  if (problem.N > kMost || problem.D > kMost) {
    throw std::invalid_argument("bias_gelu: the CUDA kernels take up to 2^31 - 1 rows and columns");
  }
  if (problem.N == 0 || problem.D == 0) return;
  const bias_gelu::Plan plan(problem);
  const dim3 grid(unsigned(plan.blocks_x), unsigned(plan.blocks_y));
  cuda::launch(plan.kernel.c_str(), grid, bias_gelu::kThreads, stream, plan.problem);
}

}  // namespace seed_fast

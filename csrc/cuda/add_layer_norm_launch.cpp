#include <limits>
#include <stdexcept>

#include "add_layer_norm_cuda.h"
#include "add_layer_norm_plan.h"
#include "launch.h"

namespace seed_fast {

void add_layer_norm_cuda(const AddLayerNorm& problem, cudaStream_t stream) {
  constexpr int64_t kMost = std::numeric_limits<int>::max() - add_layer_norm::kThreads;
  if (problem.N > kMost || problem.D > kMost) {
    throw std::invalid_argument("add_layer_norm: the CUDA kernels take up to 2^31 - 129 rows and columns");
  }
  if (problem.N == 0 || problem.D == 0) return;
  const add_layer_norm::Plan plan(problem);
  cuda::launch(plan.kernel.c_str(), plan.blocks, plan.threads, stream, plan.problem);
}

}  // namespace seed_fast

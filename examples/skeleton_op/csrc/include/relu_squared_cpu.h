// relu_squared on the CPU.
#pragma once

#include <cstdint>

namespace seed_fast {

// x [N] -> y [N], both contiguous.
void relu_squared_cpu(const float* x, float* y, int64_t N, int threads);

}  // namespace seed_fast

#define SEED_FAST_LANES 8
#include "bias_gelu_kernel.h"

namespace seed_fast {
const BiasGeluKernel bias_gelu_avx2 = gelu_row;
}

#define SEED_FAST_LANES 4
#include "bias_gelu_kernel.h"

namespace seed_fast {
const BiasGeluKernel bias_gelu_scalar = gelu_row;
}

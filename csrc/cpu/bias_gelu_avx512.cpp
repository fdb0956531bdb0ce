#define SEED_FAST_LANES 16
#include "bias_gelu_kernel.h"

namespace seed_fast {
const BiasGeluKernel bias_gelu_avx512 = gelu_row;
}

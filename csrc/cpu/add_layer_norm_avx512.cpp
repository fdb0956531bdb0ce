#define SEED_FAST_LANES 16
#include "add_layer_norm_kernel.h"

namespace seed_fast {
const AddLayerNormKernel add_layer_norm_avx512 = norm_row;
}

#define SEED_FAST_LANES 4
#include "add_layer_norm_kernel.h"

namespace seed_fast {
const AddLayerNormKernel add_layer_norm_scalar = norm_row;
}

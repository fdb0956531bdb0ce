#define SEED_FAST_LANES 8
#include "add_layer_norm_kernel.h"

namespace seed_fast {
const AddLayerNormKernel add_layer_norm_avx2 = norm_row;
}

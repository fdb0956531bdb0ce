#define SEED_FAST_LANES 4
#define SEED_FAST_TILE 12
#define SEED_FAST_PAIRS 0
#include "attention_kernel.h"

namespace seed_fast {
const AttentionKernel attention_scalar = attend;
}

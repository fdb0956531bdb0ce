#define SEED_FAST_LANES 16
#define SEED_FAST_TILE 24
#define SEED_FAST_PAIRS 0
#include "attention_kernel.h"

namespace seed_fast {
const AttentionKernel attention_avx512 = attend;
}

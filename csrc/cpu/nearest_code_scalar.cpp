#define SEED_FAST_LANES 4
#define SEED_FAST_ROWS 2
#define SEED_FAST_VECTORS 4
#include "nearest_code_kernel.h"

namespace seed_fast {
const NearestCodeKernels nearest_code_scalar = {PairType::none, screen<Single>, nullptr, rescore, survivors};
}

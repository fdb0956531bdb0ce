#define SEED_FAST_LANES 16
#define SEED_FAST_ROWS 12
#define SEED_FAST_VECTORS 2
#include "nearest_code_kernel.h"

namespace seed_fast {
const NearestCodeKernels nearest_code_avx512 = {PairType::none, screen<Single>, nullptr, rescore, survivors};
}

#define SEED_FAST_LANES 8
#define SEED_FAST_ROWS 6
#define SEED_FAST_VECTORS 2
#include "nearest_code_kernel.h"

namespace seed_fast {
const NearestCodeKernels nearest_code_avx2 = {screen<Single>, nullptr, rescore, survivors};
}

#include <immintrin.h>

#define SEED_FAST_LANES 16
#define SEED_FAST_ROWS 12
#define SEED_FAST_VECTORS 2
#include "nearest_code_kernel.h"

namespace seed_fast {
namespace {

// How a screen multiplies (see Single in nearest_code_kernel.h): two bfloat16 products per lane and step, added in
// float32.
struct Pair {
  using Element = uint32_t;
  static int64_t steps(const PackedCodebook& codes) { return codes.pairs; }
  static const Element* tiles(const PackedCodebook& codes) { return codes.pair_tiles; }
  static Floats multiply_add(Floats sum, Element z, Floats codes) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(int(z)), (__m512bh)(__m512)codes);
  }
};

void screen_pairs(const uint32_t* z, const double*, int64_t rows, const PackedCodebook& codes, int64_t begin,
                  int64_t end, float* maxima) {
  screen<Pair>(z, rows, codes, begin, end, maxima);
}

}  // namespace

const NearestCodeKernels nearest_code_avx512bf16 = {PairType::bfloat16, screen<Single>, screen_pairs, rescore,
                                                    survivors};
}  // namespace seed_fast

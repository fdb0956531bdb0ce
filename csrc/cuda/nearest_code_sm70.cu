// The binary16 screen of nearest_code with Volta's tensor cores, m8n8k4.
//
// architectures: 70
#include "nearest_code_half.h"

namespace seed_fast::nearest_code {

// 32 rows x 64 codes of a warp. The four products of an m8n8k4 are the quarters of 16 rows x 16 codes: quad pair q
// computes the 8 rows from 8 (q % 2) on and the 8 codes from 8 (q / 2) on. The warp has 2 x 4 such squares.
struct MmaSm70 {
  static constexpr int kRowMask = 2, kOtherRowMask = 8;  // lanes that have the same rows differ in these bits
  float sums[2][4][8];                                   // accumulators by square

  SEED_FAST_DEVICE MmaSm70() {
    SEED_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      SEED_FAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        SEED_FAST_UNROLL
        for (int e = 0; e < 8; ++e) sums[i][j][e] = 0;
      }
    }
  }

  // Adds the products of 32 dimensions: four octets of the warp's rows and codes, in shared memory.
  SEED_FAST_DEVICE void add(const uint4* z, const uint4* codes, int lane) {
    const int within = lane % 4 + lane / 16 * 4, row = lane / 4 % 2 * 8 + within, column = lane / 8 % 2 * 8 + within;
    SEED_FAST_UNROLL
    for (int octet = 0; octet < kChunkOctets; ++octet) {
      uint4 a[2];
      SEED_FAST_UNROLL
      for (int i = 0; i < 2; ++i) a[i] = z[octet * kZPitch + 16 * i + row];
      SEED_FAST_UNROLL
      for (int j = 0; j < 4; ++j) {
        const uint4 b = codes[octet * kCodePitch + 16 * j + column];
        const unsigned low[2] = {b.x, b.y}, high[2] = {b.z, b.w};
        SEED_FAST_UNROLL
        for (int i = 0; i < 2; ++i) {
          const unsigned part[2] = {a[i].x, a[i].y};
          mma_m8n8k4(sums[i][j], part, low);
        }
        SEED_FAST_UNROLL
        for (int i = 0; i < 2; ++i) {
          const unsigned part[2] = {a[i].z, a[i].w};
          mma_m8n8k4(sums[i][j], part, high);
        }
      }
    }
  }

  // Which of the warp's 32 rows is row r < 4 of a lane.
  SEED_FAST_DEVICE static int row(int lane, int r) {
    return r / 2 * 16 + lane / 4 % 2 * 8 + lane / 16 * 4 + r % 2 * 2 + lane % 2;
  }
  // Index, 0 .. 3, among the four lanes that have the same rows: `lanes` in position_of().
  SEED_FAST_DEVICE static int column_class(int lane) { return lane / 8 % 2 * 2 + lane / 2 % 2; }
  // z'.e', still scaled, of row r < 4 of this thread and code `member` of its group g < 2.
  SEED_FAST_DEVICE float sum(int r, int g, int member) const {
    return sums[r / 2][g * 2 + member / 4][member / 2 % 2 * 4 + r % 2 * 2 + member % 2];
  }
};

// The binary16 screen of z [N, D] of the dtype, row stride in elements -> partials [shares, N].
SEED_FAST_KERNEL(128, 2)
nearest_code_fwd_sm70_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                             const unsigned char* packed, int k, int wanted_blocks, Partial* partials) {
  screen_half<MmaSm70>(Rows{z, dtype, n, row_stride}, Codes(packed, k, d), wanted_blocks, partials);
}

}  // namespace seed_fast::nearest_code

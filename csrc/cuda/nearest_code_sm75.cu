// The binary16 screen of nearest_code with the tensor cores of Turing (m16n8k8) and of all newer GPUs (m16n8k16).
//
// architectures: 75 80 86 89 90 100 120
#include "nearest_code_half.h"

namespace seed_fast::nearest_code {

// 32 rows x 64 codes of a warp, as 2 x 8 products of 16 rows x 8 codes. A sum over dimensions may take them in any
// order, as long as rows and codes take the same: so lane t of four holds octet t, and one read of 16 bytes gives it
// its part of all 32 dimensions. kDeep: m16n8k16 instead of m16n8k8.
template <bool kDeep>
struct MmaSm75 {
  static constexpr int kRowMask = 1, kOtherRowMask = 2;  // lanes that have the same rows differ in these bits
  float sums[2][8][4];                                   // accumulators by product

  SEED_FAST_DEVICE MmaSm75() {
    SEED_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      SEED_FAST_UNROLL
      for (int j = 0; j < 8; ++j) {
        SEED_FAST_UNROLL
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
      }
    }
  }

  // Adds the products of 32 dimensions: four octets of the warp's rows and codes, in shared memory.
  SEED_FAST_DEVICE void add(const uint4* z, const uint4* codes, int lane) {
    const int row = lane / 4, octet = lane % 4;
    uint4 a[2][2];
    SEED_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      a[i][0] = z[octet * kZPitch + 16 * i + row];
      a[i][1] = z[octet * kZPitch + 16 * i + 8 + row];
    }
    SEED_FAST_UNROLL
    for (int j = 0; j < 8; ++j) {
      const uint4 b = codes[octet * kCodePitch + 8 * j + row];
      SEED_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const uint4 &first = a[i][0], &second = a[i][1];
        if (kDeep) {
          const unsigned a_low[4] = {first.x, second.x, first.y, second.y}, b_low[2] = {b.x, b.y};
          const unsigned a_high[4] = {first.z, second.z, first.w, second.w}, b_high[2] = {b.z, b.w};
          mma_m16n8k16(sums[i][j], a_low, b_low);
          mma_m16n8k16(sums[i][j], a_high, b_high);
        } else {
          const unsigned parts[4][2] = {
              {first.x, second.x}, {first.y, second.y}, {first.z, second.z}, {first.w, second.w}};
          mma_m16n8k8(sums[i][j], parts[0], b.x);
          mma_m16n8k8(sums[i][j], parts[1], b.y);
          mma_m16n8k8(sums[i][j], parts[2], b.z);
          mma_m16n8k8(sums[i][j], parts[3], b.w);
        }
      }
    }
  }

  // These three have the same meaning as in nearest_code_sm70.cu.
  SEED_FAST_DEVICE static int row(int lane, int r) { return r / 2 * 16 + r % 2 * 8 + lane / 4; }
  SEED_FAST_DEVICE static int column_class(int lane) { return lane % 4; }
  SEED_FAST_DEVICE float sum(int r, int g, int member) const {
    return sums[r / 2][g * 4 + member / 2][r % 2 * 2 + member % 2];
  }
};

// The binary16 screen of z [N, D] of the dtype, row stride in elements -> partials [shares, N]. For sm_75 and newer.
SEED_FAST_KERNEL(128, 2)
nearest_code_fwd_sm75_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                             const unsigned char* packed, int k, int wanted_blocks, Partial* partials) {
  screen_half<MmaSm75<kHasM16n8k16>>(Rows{z, dtype, n, row_stride}, Codes(packed, k, d), wanted_blocks, partials);
}

}  // namespace seed_fast::nearest_code

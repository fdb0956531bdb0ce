// The binary16 screen of nearest_code with Volta's tensor cores, m8n8k4.
//
// architectures: 70
#include "nearest_code_half.h"

namespace seed_fast::nearest_code {

// Each of the four products of an instruction is one quarter of 16 rows x 16 codes: quad pair q takes rows 8 (q % 2)
// and codes 8 (q / 2). Two by four of these make the warp's 32 x 64.
struct MmaSm70 {
  static constexpr int kRowMask = 2, kOtherRowMask = 8;  // lanes that share rows differ in these bits
  float sums[2][4][8];

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

  // One chunk of 32 dimensions, four octets of rows and codes.
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

  // Row r < 4 of a thread, among the warp's 32.
  SEED_FAST_DEVICE static int row(int lane, int r) {
    return r / 2 * 16 + lane / 4 % 2 * 8 + lane / 16 * 4 + r % 2 * 2 + lane % 2;
  }
  // Which of four threads that share rows: the lanes part of position_of.
  SEED_FAST_DEVICE static int column_class(int lane) { return lane / 8 % 2 * 2 + lane / 2 % 2; }
  SEED_FAST_DEVICE float sum(int r, int g, int member) const {
    return sums[r / 2][g * 2 + member / 4][member / 2 % 2 * 4 + r % 2 * 2 + member % 2];
  }
};

// z [N, D] of the dtype, row stride in elements -> partials [shares, N].
SEED_FAST_KERNEL(128, 2)
nearest_code_fwd_sm70_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                             const unsigned char* packed, int k, int wanted_blocks, Partial* partials) {
  screen_half<MmaSm70>(Rows{z, dtype, n, row_stride}, Codes(packed, k, d), wanted_blocks, partials);
}

}  // namespace seed_fast::nearest_code

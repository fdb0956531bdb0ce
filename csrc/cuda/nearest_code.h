// What the kernels of nearest_code and their launcher share: tile sizes, the packed codebook, partial results.
#pragma once

#ifdef __CUDACC__
#define SEED_FAST_HOST_DEVICE __host__ __device__
#else
#define SEED_FAST_HOST_DEVICE
#endif

namespace seed_fast::nearest_code {

enum Dtype : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };  // as csrc/include/dtype.h numbers them

constexpr int kThreads = 128;    // per block, of every kernel
constexpr int kTileCodes = 128;  // codes of one tile
constexpr int kDepth = 32;       // dimensions held in shared memory at a time
constexpr int kUnroll = 8;       // dimensions per unrolled step; the packed width is a multiple of it
constexpr int kMaxDim = 1 << 20;

// A packed codebook is one allocation, 16-byte aligned:
//   PackedHeader | norms64 double [K padded] | norms32 float [K padded] | tiles float [K padded / 128, D padded, 128]
// The last tile is filled up with codes of norm +inf, which are never nearest; dimensions are filled up with zeros.
struct PackedHeader {
  unsigned bad_norm;       // lowest entry whose squared norm is not finite in float32, or -1
  unsigned max_norm_bits;  // complement of the float32 bits of the largest squared norm, rounded up
  unsigned reserved[14];
};
constexpr int kHeaderFill = 0xff;  // every byte of the header, before pack_codebook_kernel

SEED_FAST_HOST_DEVICE inline int code_tiles(int k) { return (k - 1) / kTileCodes + 1; }
SEED_FAST_HOST_DEVICE inline int padded_dim(int d) { return (d + kUnroll - 1) / kUnroll * kUnroll; }

// Offsets into a packed codebook and its size, all in bytes.
struct PackedLayout {
  long long norms64, norms32, tiles, bytes;

  SEED_FAST_HOST_DEVICE PackedLayout(int k, int d) {
    const long long codes = static_cast<long long>(code_tiles(k)) * kTileCodes;
    norms64 = static_cast<long long>(sizeof(PackedHeader));
    norms32 = norms64 + codes * static_cast<long long>(sizeof(double));
    tiles = norms32 + codes * static_cast<long long>(sizeof(float));
    bytes = tiles + codes * padded_dim(d) * static_cast<long long>(sizeof(float));
  }
};

// The two lowest float32 scores ||e||^2 - 2 z.e of one row in one share of the codebook.
struct Partial {
  float best, second;
  int index;  // of the best
};

}  // namespace seed_fast::nearest_code

// The binary16 screen of nearest_code on tensor cores, for any fragment layout. The template parameter `Mma` defines
// how a warp multiplies 32 rows by 64 codes and which thread holds which scores; see MmaSm70 in nearest_code_sm70.cu
// and MmaSm75 in nearest_code_sm75.cu.
#pragma once

#include "nearest_code_device.h"

namespace seed_fast::nearest_code {

constexpr int kWarpRows = 32, kWarpCodes = 64;     // of a warp; the block's four warps are arranged 2 x 2
constexpr int kThreadRows = 4, kThreadGroups = 2;  // of a thread, in each tile
constexpr int kChunkOctets = kDepth / kOctet;      // octets held in shared memory at a time
// An octet, eight dimensions of a row or code, is 16 bytes. In shared memory equal octets of all rows (or codes) are
// neighbours, and the pitch from octet to octet is 2 modulo 8 in units of 16 bytes: so with either layout the reads of
// eight lanes fall into different banks.
constexpr int kZPitch = kBlockRows + 2, kCodePitch = kTileCodes + 2;

// Dimensions begin .. begin + 7 of z', multiplied by `up` and rounded to binary16; zeros beyond the last dimension.
SEED_FAST_DEVICE uint4 scaled_octet(const Row& z, const Codes& codes, int begin, float up) {
  unsigned pairs[kOctet / 2];
  SEED_FAST_UNROLL
  for (int pair = 0; pair < kOctet / 2; ++pair) {
    float values[2];
    SEED_FAST_UNROLL
    for (int j = 0; j < 2; ++j) {
      const int i = begin + 2 * pair + j;
      values[j] = i < codes.d ? (z[i] - codes.center[i]) * up : 0;
    }
    pairs[pair] = half_pair(values[0], values[1]);
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// Screens 64 rows against a share of the codebook, as Plan assigns them to this block. partials: [shares, N].
template <class Mma>
SEED_FAST_DEVICE void screen_half(const Rows& z, const Codes& codes, int wanted_blocks, Partial* partials) {
  SEED_FAST_SHARED(uint4, z_tile, [kChunkOctets * kZPitch]);
  SEED_FAST_SHARED(uint4, code_tile, [kChunkOctets * kCodePitch]);
  SEED_FAST_SHARED(float, row_up, [kBlockRows]);
  SEED_FAST_SHARED(float, row_down, [kBlockRows]);
  SEED_FAST_SHARED(float, row_slope, [kBlockRows]);  // the row's error bound per unit of ||e'||
  SEED_FAST_SHARED(Partial, other_half, [kBlockRows]);
  // Which rows and tiles this block computes, and which quarter of them this warp.
  const Plan plan(z.n, codes.k, wanted_blocks);
  const ScreenError error(codes.d, true);
  const int thread = thread_index(), lane = thread % kWarp, warp = thread / kWarp;
  const int warp_row = warp % 2 * kWarpRows, warp_half = warp / 2;
  const long long first_row = block_index_x() / plan.shares * kBlockRows;
  const int share = static_cast<int>(block_index_x() % plan.shares);
  const int first_tile = share * plan.tiles_per_block, tiles = code_tiles(codes.k);
  const int last_tile = first_tile + plan.tiles_per_block < tiles ? first_tile + plan.tiles_per_block : tiles;
  const int octets = padded_dim(codes.d) / kOctet;

  // Scale and error bound of each row. Other threads read them only after the barrier at the beginning of the first
  // tile.
  const int rows = z.n - first_row < kBlockRows ? static_cast<int>(z.n - first_row) : kBlockRows;
  for (int i = warp * kMeasured; i < kBlockRows; i += kThreads / kWarp * kMeasured) {
    RowSize sizes[kMeasured];
    if (i < rows) measure([&](int r) { return Row(z, first_row + i + r); }, rows - i, codes, lane, sizes);
    SEED_FAST_UNROLL
    for (int r = 0; r < kMeasured; ++r) {
      if (lane != r) continue;
      row_up[i + r] = sizes[r].scale.up;
      row_down[i + r] = sizes[r].scale.down;
      row_slope[i + r] = error.products * sizes[r].spread;
    }
  }
  Partial partial[kThreadRows];
  SEED_FAST_UNROLL
  for (int r = 0; r < kThreadRows; ++r) partial[r] = nothing();

  for (int tile = first_tile; tile < last_tile; ++tile) {
    // z'.e' of the tile, 32 dimensions at a time.
    Mma product;
    for (int begin = 0; begin < octets; begin += kChunkOctets) {
      barrier();  // all threads have finished reading the tiles that are overwritten now
      const uint4* const source = codes.half_tiles + (static_cast<long long>(tile) * octets + begin) * kTileCodes;
      SEED_FAST_UNROLL
      for (int octet = 0; octet < kChunkOctets; ++octet) {  // each thread copies one code
        code_tile[octet * kCodePitch + thread] = source[octet * kTileCodes + thread];
      }
      if (octets > kChunkOctets || tile == first_tile) {  // with up to 32 dimensions z' is loaded once for all tiles
        SEED_FAST_NO_UNROLL
        for (int i = thread; i < kChunkOctets * kBlockRows; i += kThreads) {
          const int row = i / kChunkOctets, octet = i % kChunkOctets;
          const bool inside = first_row + row < z.n;
          z_tile[octet * kZPitch + row] =
              inside ? scaled_octet(Row(z, first_row + row), codes, (begin + octet) * kOctet, row_up[row])
                     : uint4{0, 0, 0, 0};
        }
      }
      barrier();
      product.add(z_tile + warp_row, code_tile + warp_half * kWarpCodes, lane);
    }
    // Scores: undo the scaling, add -||e'||^2 / 2, and keep the largest score of each group.
    SEED_FAST_UNROLL
    for (int g = 0; g < kThreadGroups; ++g) {
      const int group = tile * kTileGroups + warp_half * 8 + g * 4 + Mma::column_class(lane);
      const Group sizes = codes.groups[group];
      const float in_group = error.of_group(sizes);
      alignas(16) float start[kGroup];
      SEED_FAST_UNROLL
      for (int member = 0; member < kGroup; member += 4) {
        *reinterpret_cast<float4*>(&start[member]) =
            *reinterpret_cast<const float4*>(codes.start + code_of(group, member));
      }
      SEED_FAST_UNROLL
      for (int r = 0; r < kThreadRows; ++r) {
        const int row = warp_row + Mma::row(lane, r);
        const float both = row_down[row] * sizes.scale;  // at least 2^-126 (see Scale), so it is not flushed to zero
        float largest = -infinity();
        SEED_FAST_UNROLL
        for (int member = 0; member < kGroup; ++member) {
          largest = maximum(largest, multiply_add(product.sum(r, g, member), both, start[member]));
        }
        keep_next(partial[r], largest, multiply_add(row_slope[row], sizes.norm, in_group), group);
      }
    }
  }

  // Merge the results of the four lanes that have the same rows, then, through shared memory, those of the two warps
  // that have the two halves of each tile.
  SEED_FAST_UNROLL
  for (int r = 0; r < kThreadRows; ++r) {
    merge(partial[r], shuffle_partial(partial[r], Mma::kRowMask));
    merge(partial[r], shuffle_partial(partial[r], Mma::kOtherRowMask));
    if (warp_half == 1 && Mma::column_class(lane) == 0) other_half[warp_row + Mma::row(lane, r)] = partial[r];
  }
  barrier();
  SEED_FAST_UNROLL
  for (int r = 0; r < kThreadRows; ++r) {
    const int row = warp_row + Mma::row(lane, r);
    if (warp_half == 1 || Mma::column_class(lane) != 0 || first_row + row >= z.n) continue;
    merge(partial[r], other_half[row]);
    partials[share * z.n + first_row + row] = partial[r];
  }
}

}  // namespace seed_fast::nearest_code

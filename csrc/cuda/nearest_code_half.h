// The binary16 screen of nearest_code on tensor cores, for any fragment layout. `Mma` says how a warp multiplies 32 rows
// by 64 codes and which thread gets which scores; see nearest_code_sm70.cu and nearest_code_sm75.cu.
#pragma once

#include "nearest_code_device.h"

namespace seed_fast::nearest_code {

constexpr int kWarpRows = 32, kWarpCodes = 64;       // of a warp: two warps by two make a block
constexpr int kThreadRows = 4, kThreadGroups = 2;    // of a thread
constexpr int kChunkOctets = kDepth / kOctet;        // held in shared memory at a time
// Eight dimensions of a row or code are 16 bytes. Octets follow each other at a pitch of 2 modulo 8 such units, so that
// neither layout's reads of eight lanes meet in a bank.
constexpr int kZPitch = kBlockRows + 2, kCodePitch = kTileCodes + 2;

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

// 64 rows a block against its share of the codebook, see Plan. partials: [shares, N].
template <class Mma>
SEED_FAST_DEVICE void screen_half(const Rows& z, const Codes& codes, int wanted_blocks, Partial* partials) {
  SEED_FAST_SHARED(uint4, z_tile, [kChunkOctets * kZPitch]);
  SEED_FAST_SHARED(uint4, code_tile, [kChunkOctets * kCodePitch]);
  SEED_FAST_SHARED(float, row_up, [kBlockRows]);
  SEED_FAST_SHARED(float, row_down, [kBlockRows]);
  SEED_FAST_SHARED(float, row_slope, [kBlockRows]);  // error bound per ||e'||
  SEED_FAST_SHARED(Partial, other_half, [kBlockRows]);
  const Plan plan(z.n, codes.k, wanted_blocks);
  const ScreenError error(codes.d, true);
  const int thread = thread_index(), lane = thread % kWarp, warp = thread / kWarp;
  const int warp_row = warp % 2 * kWarpRows, warp_half = warp / 2;
  const long long first_row = block_index_x() / plan.shares * kBlockRows;
  const int share = static_cast<int>(block_index_x() % plan.shares);
  const int first_tile = share * plan.tiles_per_block, tiles = code_tiles(codes.k);
  const int last_tile = first_tile + plan.tiles_per_block < tiles ? first_tile + plan.tiles_per_block : tiles;
  const int octets = padded_dim(codes.d) / kOctet;

  // Read after the barrier with which the first tile begins.
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
    Mma product;
    for (int begin = 0; begin < octets; begin += kChunkOctets) {
      barrier();  // nobody reads what is overwritten now
      const uint4* const source = codes.half_tiles + (static_cast<long long>(tile) * octets + begin) * kTileCodes;
      SEED_FAST_UNROLL
      for (int octet = 0; octet < kChunkOctets; ++octet) {  // one code a thread
        code_tile[octet * kCodePitch + thread] = source[octet * kTileCodes + thread];
      }
      if (octets > kChunkOctets || tile == first_tile) {  // up to 32 dimensions stay in place for all tiles
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
        const float both = row_down[row] * sizes.scale;  // at least 2^-126, see Scale
        float largest = -infinity();
        SEED_FAST_UNROLL
        for (int member = 0; member < kGroup; ++member) {
          largest = maximum(largest, multiply_add(product.sum(r, g, member), both, start[member]));
        }
        keep_next(partial[r], largest, multiply_add(row_slope[row], sizes.norm, in_group), group);
      }
    }
  }

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

// How one search of nearest_code is cut into blocks. Host code, free of CUDA.
#pragma once

#include "nearest_code.h"

namespace seed_fast::nearest_code {

// Rows in groups, the codebook in shares. A pure function of the sizes, so that the workspace can be sized beforehand
// and a captured graph can be replayed.
struct Plan {
  int block_rows;  // 64, or 32: which screen kernel
  int tiles_per_block, shares;
  long long row_blocks;

  Plan(long long n, int k, int multiprocessors) {
    constexpr int kResident = 3;  // blocks of the screen kernel on one multiprocessor
    constexpr int kWaves = 4;     // of resident blocks, so that an uneven last one costs little
    block_rows = n <= 32 ? 32 : 64;
    row_blocks = (n - 1) / block_rows + 1;
    const long long wanted = static_cast<long long>(multiprocessors) * kResident * kWaves;
    const long long tiles = code_tiles(k), all = tiles * row_blocks;
    tiles_per_block = static_cast<int>(all / wanted < 1 ? 1 : all / wanted < tiles ? all / wanted : tiles);
    shares = static_cast<int>((tiles - 1) / tiles_per_block + 1);
  }

  // At most N partial results, or 64 for each block that is wanted at once.
  long long workspace_bytes(long long n) const { return shares * n * static_cast<long long>(sizeof(Partial)); }
};

}  // namespace seed_fast::nearest_code

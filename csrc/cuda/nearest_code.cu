// nearest_code on CUDA: ids[n] = argmin over k of ||e_k||^2 - 2 z_n.e_k in exact arithmetic, the lowest k on ties. The
// terms are explained in nearest_code.h.
//
// 1. nearest_code_fwd_sm70_kernel or nearest_code_fwd_sm75_kernel screens all rows x codes on tensor cores in binary16.
//    Scores never leave the chip, so [N, K] never exists in memory. The result is a Partial for each row and share of
//    the codebook: the groups of eight codes in which, given the error bound, the nearest one can be.
// 2. nearest_code_finish_kernel merges the shares. Where one or two groups are left it compares their codes exactly,
//    which decides the row. The other rows go to a list.
// 3. nearest_code_fwd_rows_kernel screens the listed rows again in float32, with an error bound hundreds of times
//    tighter.
// 4. nearest_code_finish_rows_kernel decides them. Rows for which more than two groups are still left are compared
//    with every code.
//
// Kernels 3 and 4 read the length of the list from device memory, so the host doesn't wait for it; if it is 0 they end
// at once.
#include "nearest_code_rescore.h"

namespace seed_fast::nearest_code {

// The partial results [shares, n] of one row, merged by all lanes of a warp, which all return the result.
SEED_FAST_DEVICE Partial merged(const Partial* partials, int shares, long long n, long long row, int lane) {
  Partial found = nothing();
  for (int share = lane; share < shares; share += kWarp) merge(found, partials[share * n + row]);
  for (int mask = 1; mask < kWarp; mask *= 2) merge(found, shuffle_partial(found, mask));
  return found;
}

// The float32 screen of the listed rows: rows [count] -> partials [shares, count]. Plan(count, ...) divides the work
// among the blocks. Of each tile a thread computes the scores of 8 rows x 8 codes, which are one group.
SEED_FAST_KERNEL(128, 2)
nearest_code_fwd_rows_kernel(const void* z, int dtype, int d, long long row_stride, const unsigned char* packed, int k,
                             int wanted_blocks, const unsigned* count, const unsigned* rows, Partial* partials) {
  constexpr int kRows = 8, kRowGroups = kBlockRows / kRows, kLanes = kThreads / kRowGroups;
  constexpr int kPitch = kBlockRows + 4;  // rows stay 16-byte aligned, and writing z_tile causes no bank conflicts
  SEED_FAST_SHARED(float, z_tile, [kDepth][kPitch]);  // z', transposed
  SEED_FAST_SHARED(float, code_tile, [kDepth][kTileCodes]);
  SEED_FAST_SHARED(float, spreads, [kBlockRows]);
  // Which rows and tiles this block computes.
  const long long n = *count;
  const Plan plan(n, k, wanted_blocks);
  if (block_index_x() >= plan.blocks()) return;
  const Codes codes(packed, k, d);
  const Rows all{z, dtype, n, row_stride};
  const ScreenError error(d, false);
  const int thread = thread_index(), lane = thread % kLanes, row_group = thread / kLanes;
  const long long first_row = block_index_x() / plan.shares * kBlockRows;
  const int share = static_cast<int>(block_index_x() % plan.shares);
  const int first_tile = share * plan.tiles_per_block;
  const int last_tile =
      first_tile + plan.tiles_per_block < code_tiles(k) ? first_tile + plan.tiles_per_block : code_tiles(k);
  const auto row_at = [&](int i) { return Row(all, rows[first_row + i]); };

  // The error bound of a row's scores is bound_slope times the group's norm, plus a term of the group alone.
  const int listed = n - first_row < kBlockRows ? static_cast<int>(n - first_row) : kBlockRows;
  for (int i = thread / kWarp * kMeasured; i < kBlockRows; i += kThreads / kWarp * kMeasured) {
    RowSize sizes[kMeasured];
    if (i < listed) measure([&](int r) { return row_at(i + r); }, listed - i, codes, thread % kWarp, sizes);
    SEED_FAST_UNROLL
    for (int r = 0; r < kMeasured; ++r) {
      if (thread % kWarp == r) spreads[i + r] = sizes[r].spread;
    }
  }
  barrier();
  float bound_slope[kRows];
  Partial partial[kRows];
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    bound_slope[r] = error.products * spreads[row_group * kRows + r];
    partial[r] = nothing();
  }

  for (int tile = first_tile; tile < last_tile; ++tile) {
    // This thread's group: codes 4 * lane + {0..3} and 64 + 4 * lane + {0..3} of the tile, two 16-byte reads per
    // dimension. Scores start at -||e'||^2 / 2.
    const int group = tile * kTileGroups + lane;
    float score[kRows][kGroup];
    SEED_FAST_UNROLL
    for (int c = 0; c < kGroup; ++c) {
      const float start = codes.start[code_of(group, c)];
      SEED_FAST_UNROLL
      for (int r = 0; r < kRows; ++r) score[r][c] = start;
    }
    // Add z'.e', 32 dimensions at a time.
    for (int begin = 0; begin < d; begin += kDepth) {
      const int depth = d - begin < kDepth ? (d - begin + 3) / 4 * 4 : kDepth;
      barrier();  // all threads have finished reading the tiles that are overwritten now
      const float* const source = codes.tile(tile) + static_cast<long long>(begin) * kTileCodes;
      for (int i = 4 * thread; i < depth * kTileCodes; i += 4 * kThreads) {
        const float center = codes.center[begin + i / kTileCodes];
        const float4 raw = *reinterpret_cast<const float4*>(source + i);
        *reinterpret_cast<float4*>(&code_tile[i / kTileCodes][i % kTileCodes]) =
            float4{raw.x - center, raw.y - center, raw.z - center, raw.w - center};
      }
      if (d > kDepth || tile == first_tile) {  // with up to 32 dimensions z' is loaded once for all tiles
        for (int i = thread; i < kDepth * kBlockRows; i += kThreads) {
          const int column = i % 8 + i / (8 * kBlockRows) * 8, row = i / 8 % kBlockRows;
          const bool inside = begin + column < d && first_row + row < n;
          z_tile[column][row] = inside ? row_at(row)[begin + column] - codes.center[begin + column] : 0;
        }
      }
      barrier();
      SEED_FAST_NO_UNROLL
      for (int base = 0; base < depth; base += 4) {
        SEED_FAST_UNROLL
        for (int i = base; i < base + 4; ++i) {
          alignas(16) float z_part[kRows], code_part[kGroup];
          SEED_FAST_UNROLL
          for (int r = 0; r < kRows; r += 4) {
            *reinterpret_cast<float4*>(&z_part[r]) =
                *reinterpret_cast<const float4*>(&z_tile[i][row_group * kRows + r]);
          }
          SEED_FAST_UNROLL
          for (int half = 0; half < 2; ++half) {
            *reinterpret_cast<float4*>(&code_part[4 * half]) =
                *reinterpret_cast<const float4*>(&code_tile[i][kTileCodes / 2 * half + 4 * lane]);
          }
          SEED_FAST_UNROLL
          for (int r = 0; r < kRows; ++r) {
            SEED_FAST_UNROLL
            for (int c = 0; c < kGroup; ++c) score[r][c] = multiply_add(z_part[r], code_part[c], score[r][c]);
          }
        }
      }
    }
    // Keep the largest score of the group.
    const Group sizes = codes.groups[group];
    const float in_group = error.of_group(sizes);
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      float largest = score[r][0];
      SEED_FAST_UNROLL
      for (int c = 1; c < kGroup; ++c) largest = maximum(largest, score[r][c]);
      keep_next(partial[r], largest, multiply_add(bound_slope[r], sizes.norm, in_group), group);
    }
  }
  // Merge the results of the threads that have the same rows.
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int mask = 1; mask < kLanes; mask *= 2) merge(partial[r], shuffle_partial(partial[r], mask));
    const long long row = first_row + row_group * kRows + r;
    if (lane == 0 && row < n) partials[share * n + row] = partial[r];
  }
}

// Decides rows from the partials [shares, N] of the binary16 screen: writes their ids [N], int64, and lists the other
// rows in open_rows [open_count]. A row whose squared norm is not finite in float32 gets id -1, and so do all rows if a
// code has such a norm. One warp per row.
SEED_FAST_KERNEL(128, 4)
nearest_code_finish_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                           const unsigned char* packed, int k, int shares, const Partial* partials,
                           unsigned* open_count, unsigned* open_rows, long long* ids) {
  const int lane = thread_index() % kWarp;
  const long long row = block_index_x() * (kThreads / kWarp) + thread_index() / kWarp;
  if (row >= n) return;
  const Codes codes(packed, k, d);
  const Subject subject(Rows{z, dtype, n, row_stride}, row, codes, lane);
  if (!subject.valid()) {
    if (lane == 0) ids[row] = -1;
    return;
  }
  const Partial found = merged(partials, shares, n, row, lane);
  const int id = decide(subject, found, ScreenError(d, true));
  if (lane != 0) return;
  if (id >= 0) {
    ids[row] = id;
  } else {
    open_rows[atomic_add(open_count, 1)] = static_cast<unsigned>(row);  // their order does not affect the ids
  }
}

// Decides the listed rows from the partials [shares, count] of the float32 screen and, where these are not enough, by
// comparing all codes. One warp per row.
SEED_FAST_KERNEL(128, 4)
nearest_code_finish_rows_kernel(const void* z, int dtype, int d, long long row_stride, const unsigned char* packed,
                                int k, int wanted_blocks, const unsigned* count, const unsigned* rows,
                                const Partial* partials, long long* ids) {
  const int lane = thread_index() % kWarp;
  const long long n = *count, slot = block_index_x() * (kThreads / kWarp) + thread_index() / kWarp;
  if (slot >= n) return;
  const Codes codes(packed, k, d);
  const Subject subject(Rows{z, dtype, n, row_stride}, rows[slot], codes, lane);
  const Partial found = merged(partials, Plan(n, k, wanted_blocks).shares, n, slot, lane);
  int id = decide(subject, found, ScreenError(d, false));
  if (id < 0) id = scan<false>(subject, static_cast<double>(subject.bounded ? found.lower : -infinity())).best.index;
  if (lane == 0) ids[rows[slot]] = id;
}

// Computes ids [N] and margin [N], float32: the second smallest squared distance minus the smallest, with an error of
// one or two roundings; +inf if K = 1, NaN if the id is -1. It scores every code in float64, without a screen. One warp
// per row.
SEED_FAST_KERNEL(128, 4)
nearest_code_margin_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                           const unsigned char* packed, int k, long long* ids, float* margin) {
  const int lane = thread_index() % kWarp;
  const long long row = block_index_x() * (kThreads / kWarp) + thread_index() / kWarp;
  if (row >= n) return;
  const Codes codes(packed, k, d);
  const Subject subject(Rows{z, dtype, n, row_stride}, row, codes, lane);
  long long id = -1;
  float gap = not_a_number();
  if (subject.valid()) {
    const Candidates<true> found = scan<true>(subject, -static_cast<double>(infinity()));
    id = found.best.index;
    double exact = found.second.score - found.best.score;  // +inf if there is no second code
    if (!(exact > 0x1p26 * subject.error64)) exact = exact_gap(subject.z, codes, found.second.index, found.best.index);
    gap = static_cast<float>(exact);
  }
  if (lane == 0) {
    ids[row] = id;
    margin[row] = gap;
  }
}

}  // namespace seed_fast::nearest_code

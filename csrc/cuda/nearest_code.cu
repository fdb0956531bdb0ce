// nearest_code on CUDA: ids[n] = argmin over k of ||e_k||^2 - 2 z_n.e_k in exact arithmetic, lowest k on ties.
//
// 1. nearest_code_fwd_sm70_kernel or its sm75 sibling screens rows x codes on tensor cores in binary16, on chip, so that
//    [N, K] never exists in memory. It keeps a Partial for each row and share of the codebook: which groups of eight
//    codes may hold the nearest, within the error bound.
// 2. nearest_code_finish_kernel merges the shares and decides among the codes of up to two groups. Rows that have more
//    go to a list.
// 3. nearest_code_fwd_rows_kernel screens the listed rows again in float32, whose bound is hundreds of times tighter, and
//    nearest_code_finish_rows_kernel decides them; what float32 leaves open as well is scanned code by code.
// Both later kernels read the length of the list on the device; for an empty one they end at once.
#include "nearest_code_rescore.h"

namespace seed_fast::nearest_code {

// Rows that a later pass decides.
struct OpenRows {
  unsigned* count;  // [1]
  unsigned* rows;   // [N]
};

// The merged partial results [shares, n] of one row.
SEED_FAST_DEVICE Partial merged(const Partial* partials, int shares, long long n, long long row, int lane) {
  Partial found = nothing();
  for (int share = lane; share < shares; share += kWarp) merge(found, partials[share * n + row]);
  for (int mask = 1; mask < kWarp; mask *= 2) merge(found, shuffle_partial(found, mask));
  return found;
}

// Listed rows x codes in float32. Blocks share the work as Plan(count, ...) says; a thread owns 8 rows x 8 codes (one
// group) of each tile. partials: [shares, count].
SEED_FAST_KERNEL(128, 2)
nearest_code_fwd_rows_kernel(const void* z, int dtype, int d, long long row_stride, const unsigned char* packed, int k,
                             int wanted_blocks, const unsigned* count, const unsigned* rows, Partial* partials) {
  constexpr int kRows = 8, kRowGroups = kBlockRows / kRows, kLanes = kThreads / kRowGroups;
  constexpr int kPitch = kBlockRows + 4;  // aligned rows, and no bank conflict when 8 x 4 elements are written
  SEED_FAST_SHARED(float, z_tile, [kDepth][kPitch]);  // z', transposed
  SEED_FAST_SHARED(float, code_tile, [kDepth][kTileCodes]);
  SEED_FAST_SHARED(float, spreads, [kBlockRows]);
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
  const int last_tile = first_tile + plan.tiles_per_block < code_tiles(k) ? first_tile + plan.tiles_per_block
                                                                        : code_tiles(k);
  const auto row_at = [&](int i) { return Row(all, rows[first_row + i]); };

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
    // The group of this thread: codes 4 * lane + {0..3} and 64 + 4 * lane + {0..3} of the tile, two 16-byte reads per
    // dimension.
    const int group = tile * kTileGroups + lane;
    float score[kRows][kGroup];
    SEED_FAST_UNROLL
    for (int c = 0; c < kGroup; ++c) {
      const float start = codes.start[code_of(group, c)];
      SEED_FAST_UNROLL
      for (int r = 0; r < kRows; ++r) score[r][c] = start;
    }
    for (int begin = 0; begin < d; begin += kDepth) {
      const int depth = d - begin < kDepth ? (d - begin + 3) / 4 * 4 : kDepth;
      barrier();  // nobody reads what is overwritten now
      const float* const source = codes.tile(tile) + static_cast<long long>(begin) * kTileCodes;
      for (int i = 4 * thread; i < depth * kTileCodes; i += 4 * kThreads) {
        const float center = codes.center[begin + i / kTileCodes];
        const float4 raw = *reinterpret_cast<const float4*>(source + i);
        *reinterpret_cast<float4*>(&code_tile[i / kTileCodes][i % kTileCodes]) =
            float4{raw.x - center, raw.y - center, raw.z - center, raw.w - center};
      }
      if (d > kDepth || tile == first_tile) {  // up to 32 dimensions stay in place for all tiles
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
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int mask = 1; mask < kLanes; mask *= 2) merge(partial[r], shuffle_partial(partial[r], mask));
    const long long row = first_row + row_group * kRows + r;
    if (lane == 0 && row < n) partials[share * n + row] = partial[r];
  }
}

// partials [shares, N] of the binary16 screen -> ids [N] int64 of the rows that they decide; the others are listed. A
// row whose squared norm is not finite in float32, and every row if a code's is not, gets id -1. One warp per row.
SEED_FAST_KERNEL(128, 4)
nearest_code_finish_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                           const unsigned char* packed, int k, int shares, const Partial* partials, unsigned* open_count,
                           unsigned* open_rows, long long* ids) {
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
    open_rows[atomic_add(open_count, 1)] = static_cast<unsigned>(row);  // their order is no part of the result
  }
}

// partials [shares, count] of the float32 screen -> ids of the listed rows. One warp per row.
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

// ids [N] and margin [N] float32: the second best squared distance less the best, exact but for a rounding or two; +inf
// where K = 1, NaN where the id is -1. Every code in float64, one warp per row, without a screen.
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
    double exact = found.second.score - found.best.score;  // +inf where there is no second
    if (!(exact > 0x1p26 * subject.error64)) exact = exact_gap(subject.z, codes, found.second.index, found.best.index);
    gap = static_cast<float>(exact);
  }
  if (lane == 0) {
    ids[row] = id;
    margin[row] = gap;
  }
}

}  // namespace seed_fast::nearest_code

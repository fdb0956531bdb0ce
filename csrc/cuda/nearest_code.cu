// nearest_code on CUDA: ids[n] = argmin over k of ||e_k||^2 - 2 z_n.e_k in exact arithmetic, lowest k on ties.
//
// 1. pack_codebook_kernel writes the codebook as transposed float32 tiles (exact for half types) with squared norms.
// 2. nearest_code_fwd_kernel scores rows x codes in float32 on chip, so that [N, K] never exists in memory, and keeps
//    the best and the second score of each row in each share of the codebook.
// 3. nearest_code_finish_kernel merges the shares. A row whose gap exceeds twice the error bound of a float32 score is
//    decided; any other is rescored (nearest_code_rescore.h), and so is every row if its margin is asked for.
//
// Error bound of a score, with u = 2^-24, M the largest code norm and gamma(m) = m u / (1 - m u): a chain of D fused
// multiply-adds that starts at the rounded ||e||^2 errs by at most gamma(D + 2) (M^2 + 2 ||z|| M) and D + 1 underflows,
// which are budgeted as if subnormal inputs and results were flushed to zero. Where M^2 + 2 ||z|| M nears the largest
// float32, sums can pass it on the way (upwards: no part falls below -||z||^2), and the screen decides nothing.
#include "nearest_code_rescore.h"

namespace seed_fast::nearest_code {

constexpr double kFloat32Max = 0x1.fffffep127;

// Of no code at all.
SEED_FAST_DEVICE Partial nothing() { return {infinity(), infinity(), 0}; }

// One more code: keeps the two lowest scores.
SEED_FAST_DEVICE void keep(Partial& partial, float score, int index) {
  partial.second = minimum(partial.second, maximum(partial.best, score));
  if (score < partial.best) {
    partial.best = score;
    partial.index = index;
  }
}

SEED_FAST_DEVICE void merge(Partial& partial, const Partial& other) {
  partial.second = minimum(maximum(partial.best, other.best), minimum(partial.second, other.second));
  if (other.best < partial.best || (other.best == partial.best && other.index < partial.index)) {
    partial.best = other.best;
    partial.index = other.index;
  }
}

SEED_FAST_DEVICE Partial shuffle_xor(const Partial& partial, int mask) {
  return {device::shuffle_xor(partial.best, mask), device::shuffle_xor(partial.second, mask),
          device::shuffle_xor(partial.index, mask)};
}

// Block (x, y) scores 8 * kRows rows of z against tiles [y * tiles_per_block, ...) of the codebook; a thread owns kRows
// rows x 8 codes of each tile. partials: [gridDim.y, N].
template <int kRows>
SEED_FAST_DEVICE void screen(const void* z, int dtype, long long n, long long row_stride, const Codes& codes,
                             int tiles_per_block, Partial* partials) {
  constexpr int kRowGroups = 8, kLanes = kThreads / kRowGroups, kBlockRows = kRows * kRowGroups;
  constexpr int kPitch = kBlockRows + 4;  // aligned rows, and no bank conflict when 8 x 4 elements are written
  SEED_FAST_SHARED(float, z_tile, [kDepth][kPitch]);  // -2 z, transposed
  SEED_FAST_SHARED(float, code_tile, [kDepth][kTileCodes]);
  const int thread = thread_index(), lane = thread % kLanes, row_group = thread / kLanes;
  const long long first_row = block_index_x() * kBlockRows;
  const int dim = padded_dim(codes.d);
  const int first_tile = static_cast<int>(block_index_y()) * tiles_per_block;
  const int all_tiles = code_tiles(codes.k);
  const int last_tile = first_tile + tiles_per_block < all_tiles ? first_tile + tiles_per_block : all_tiles;

  Partial partial[kRows];
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) partial[r] = nothing();

  for (int tile = first_tile; tile < last_tile; ++tile) {
    // Codes of this thread: 4 * lane + {0..3} and 64 + 4 * lane + {0..3} of the tile, two 16-byte reads per dimension.
    const int code = tile * kTileCodes + 4 * lane;
    float score[kRows][8];
    SEED_FAST_UNROLL
    for (int c = 0; c < 8; ++c) {
      const float norm = codes.norms32[code + c % 4 + c / 4 * (kTileCodes / 2)];
      SEED_FAST_UNROLL
      for (int r = 0; r < kRows; ++r) score[r][c] = norm;
    }
    for (int start = 0; start < dim; start += kDepth) {
      const int depth = dim - start < kDepth ? dim - start : kDepth;
      barrier();  // nobody reads what is overwritten now
      const float* const source = codes.tile(tile) + static_cast<long long>(start) * kTileCodes;
      for (int i = 4 * thread; i < depth * kTileCodes; i += 4 * kThreads) {
        *reinterpret_cast<float4*>(&code_tile[i / kTileCodes][i % kTileCodes]) =
            *reinterpret_cast<const float4*>(source + i);
      }
      if (dim > kDepth || tile == first_tile) {  // up to 32 dimensions stay in place for all tiles
        for (int i = thread; i < kDepth * kBlockRows; i += kThreads) {
          const int column = i % 8 + i / (8 * kBlockRows) * 8, row = i / 8 % kBlockRows;
          const bool inside = start + column < codes.d && first_row + row < n;
          z_tile[column][row] = inside ? -2 * load(z, dtype, (first_row + row) * row_stride + start + column) : 0;
        }
      }
      barrier();
      SEED_FAST_NO_UNROLL
      for (int base = 0; base < depth; base += kUnroll) {
        SEED_FAST_UNROLL
        for (int i = base; i < base + kUnroll; ++i) {
          alignas(16) float z_part[kRows], code_part[8];
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
            for (int c = 0; c < 8; ++c) score[r][c] = multiply_add(z_part[r], code_part[c], score[r][c]);
          }
        }
      }
    }
    SEED_FAST_UNROLL
    for (int r = 0; r < kRows; ++r) {
      SEED_FAST_UNROLL
      for (int c = 0; c < 8; ++c) keep(partial[r], score[r][c], code + c % 4 + c / 4 * (kTileCodes / 2));
    }
  }
  SEED_FAST_UNROLL
  for (int r = 0; r < kRows; ++r) {
    for (int mask = 1; mask < kLanes; mask *= 2) merge(partial[r], shuffle_xor(partial[r], mask));
    const long long row = first_row + row_group * kRows + r;
    if (lane == 0 && row < n) partials[block_index_y() * n + row] = partial[r];
  }
}

// codebook [K, D] of the dtype, row stride in elements -> packed, whose header holds kHeaderFill beforehand. One block
// per tile, one thread per code.
SEED_FAST_KERNEL(128, 8)
pack_codebook_kernel(const void* codebook, int dtype, int k, int d, long long row_stride, unsigned char* packed) {
  const PackedLayout layout(k, d);
  const int code = static_cast<int>(block_index_x()) * kTileCodes + thread_index();
  float* const tiles = reinterpret_cast<float*>(packed + layout.tiles);
  float* const column = tiles + block_index_x() * padded_dim(d) * kTileCodes + thread_index();
  double norm = 0;
  for (int i = 0; i < padded_dim(d); ++i) {
    const float value = code < k && i < d ? load(codebook, dtype, code * row_stride + i) : 0;
    norm = multiply_add(static_cast<double>(value), static_cast<double>(value), norm);
    column[i * kTileCodes] = value;
  }
  const bool finite = norm <= kFloat32Max;
  double* const norms64 = reinterpret_cast<double*>(packed + layout.norms64);
  float* const norms32 = reinterpret_cast<float*>(packed + layout.norms32);
  norms64[code] = code < k ? norm : infinity();
  norms32[code] = code < k && finite ? static_cast<float>(norm) : infinity();
  PackedHeader* const header = reinterpret_cast<PackedHeader*>(packed);
  if (code < k && !finite) atomic_min(&header->bad_norm, static_cast<unsigned>(code));
  float largest = code < k && finite ? float_round_up(norm) : 0;
  for (int mask = 1; mask < kWarp; mask *= 2) largest = maximum(largest, device::shuffle_xor(largest, mask));
  if (thread_index() % kWarp == 0) atomic_min(&header->max_norm_bits, ~float_bits(largest));
}

// z [N, D] of the dtype, row stride in elements -> partials [gridDim.y, N]. 64 rows a block.
SEED_FAST_KERNEL(128, 3)
nearest_code_fwd_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                        const unsigned char* packed, int k, int tiles_per_block, Partial* partials) {
  screen<8>(z, dtype, n, row_stride, Codes(packed, k, d), tiles_per_block, partials);
}

// The same with 32 rows a block: the codes of one image.
SEED_FAST_KERNEL(128, 4)
nearest_code_fwd_rows32_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                               const unsigned char* packed, int k, int tiles_per_block, Partial* partials) {
  screen<4>(z, dtype, n, row_stride, Codes(packed, k, d), tiles_per_block, partials);
}

// partials [shares, N] -> ids [N] int64 and, unless null, margin [N] float32: the second best squared distance less the
// best, +inf where K = 1. A row whose squared norm is not finite in float32, and every row if a code's is not, gets
// id -1 and margin NaN. One warp per row.
SEED_FAST_KERNEL(128, 4)
nearest_code_finish_kernel(const void* z, int dtype, long long n, int d, long long row_stride,
                           const unsigned char* packed, int k, int shares, const Partial* partials, long long* ids,
                           float* margin) {
  const int lane = thread_index() % kWarp;
  const long long row = block_index_x() * (kThreads / kWarp) + thread_index() / kWarp;
  if (row >= n) return;
  const Codes codes(packed, k, d);
  const Row z_row{z, dtype, row * row_stride};

  double z_norm = 0;
  for (int i = lane; i < d; i += kWarp) {
    const double value = static_cast<double>(z_row[i]);
    z_norm = multiply_add(value, value, z_norm);
  }
  Partial found = nothing();
  for (int share = lane; share < shares; share += kWarp) merge(found, partials[share * n + row]);
  for (int mask = 1; mask < kWarp; mask *= 2) {
    z_norm += device::shuffle_xor(z_norm, mask);
    merge(found, shuffle_xor(found, mask));
  }

  long long id = found.index;
  double gap = static_cast<double>(found.second) - static_cast<double>(found.best);
  if (!(z_norm <= kFloat32Max) || codes.header->bad_norm != ~0u) {
    id = -1;
    gap = not_a_number();
  } else {
    const double code_norm = static_cast<double>(float_from_bits(~codes.header->max_norm_bits));
    const double magnitude = code_norm + 2 * square_root(z_norm * code_norm);
    const double gamma = (d + 2) * 0x1p-24 / (1 - (d + 2) * 0x1p-24);
    const double underflow = (d + 1) * 0x1p-125 * (1 + square_root(z_norm) + square_root(code_norm));
    const bool overflows = magnitude > 0x1p127;
    const double error = overflows ? infinity() : gamma * magnitude + underflow;
    if (margin || !(gap > 2 * error)) {
      // Whatever is exactly second best scores no higher than this.
      const float threshold = float_round_up(static_cast<double>(found.second) + 2 * error);
      const double error64 = (2 * d + 4) * 0x1p-53 * magnitude;
      const Candidate exact = dtype == kFloat32   ? rescore<float>(z_row, codes, threshold, error64, lane)
                              : dtype == kFloat16 ? rescore<Half>(z_row, codes, threshold, error64, lane)
                                                  : rescore<BFloat16>(z_row, codes, threshold, error64, lane);
      id = exact.index;
      gap = exact.second > exact.score ? exact.second - exact.score : 0;
    }
  }
  if (lane == 0) {
    ids[row] = id;
    if (margin) margin[row] = static_cast<float>(gap);
  }
}

}  // namespace seed_fast::nearest_code

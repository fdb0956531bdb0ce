// vector_quantize on CUDA, given the ids from nearest_code: forward pass (quantized rows and both losses) and
// gradients. Sums are in float64 and in one fixed order, so results are bit-equal from run to run.
#include "elements.h"
#include "nearest_code_device.h"

namespace seed_fast::vector_quantize {

using namespace seed_fast::device;
using nearest_code::kThreads;

constexpr int kWarps = kThreads / kWarp;
constexpr int kRowsPerBlock = 32;      // of the forward kernel; eight per warp
constexpr int kEntriesPerBlock = 128;  // of the kernel of the codebook's gradient; 32 per warp
constexpr int kLookahead = 8;          // ids that a lane loads before it uses the first, so that the loads overlap

SEED_FAST_DEVICE double load64(const void* values, int dtype, long long i) {
  return static_cast<double>(load(values, dtype, i));
}

// Inputs: z [N, D], codebook [K, D] and ids [N], which are -1 for rows without an entry. Outputs: z_q [N, D] of z's
// type, contiguous, the entry of each row (NaN if it has none); sums [blocks], each block's sum of squared distances.
SEED_FAST_KERNEL(128, 8)
vector_quantize_fwd_kernel(const void* z, int z_dtype, long long n, int d, long long z_stride, const void* codebook,
                           int codebook_dtype, long long codebook_stride, const long long* ids, void* z_q,
                           double* sums) {
  SEED_FAST_SHARED(double, warp_sums, [kWarps]);
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  // One row per warp at a time: copy its entry, and add up the squared distance.
  double sum = 0;
  for (int i = warp; i < kRowsPerBlock; i += kWarps) {
    const long long row = block_index_x() * kRowsPerBlock + i;
    if (row >= n) break;
    const long long id = ids[row];
    for (int at = lane; at < d; at += kWarp) {
      const float entry = id < 0 ? not_a_number() : load(codebook, codebook_dtype, id * codebook_stride + at);
      const double difference = static_cast<double>(entry) - load64(z, z_dtype, row * z_stride + at);
      store(z_q, z_dtype, row * d + at, entry);
      sum = multiply_add(difference, difference, sum);
    }
  }
  // Add up over lanes, then over warps.
  for (int mask = 1; mask < kWarp; mask *= 2) sum += shuffle_xor(sum, mask);
  if (lane == 0) warp_sums[warp] = sum;
  barrier();
  if (thread_index() != 0) return;
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += warp_sums[i];
  sums[block_index_x()] = total;
}

// Both losses, float32 []: the total of sums [count] divided by `elements` = N D, or NaN if that is 0. One block.
SEED_FAST_KERNEL(128, 1)
vector_quantize_loss_kernel(const double* sums, long long count, double elements, float* commit, float* codebook_loss) {
  SEED_FAST_SHARED(double, thread_sums, [kThreads]);
  double sum = 0;
  for (long long i = thread_index(); i < count; i += kThreads) sum += sums[i];
  thread_sums[thread_index()] = sum;
  barrier();
  if (thread_index() != 0) return;
  double total = 0;
  for (int i = 0; i < kThreads; ++i) total += thread_sums[i];
  *commit = *codebook_loss = static_cast<float>(total / elements);
}

// grad_z [N, D] = grad_z_q - grad_commit (e - z) 2 / (N D), of z's type, contiguous; NaN for rows without an entry.
// grad_z_q: of z's type, with any strides. grad_commit: float32 []. Each thread computes one element, or several if
// there are more elements than threads.
SEED_FAST_KERNEL(128, 8)
vector_quantize_bwd_z_kernel(const void* z, int z_dtype, long long n, int d, long long z_stride, const void* codebook,
                             int codebook_dtype, long long codebook_stride, const long long* ids, const void* grad_z_q,
                             long long grad_stride_row, long long grad_stride_column, const float* grad_commit,
                             long long blocks, void* grad_z) {
  const double scale = static_cast<double>(*grad_commit) * (2.0 / (static_cast<double>(n) * d));
  for (long long i = block_index_x() * kThreads + thread_index(); i < n * d; i += blocks * kThreads) {
    const long long row = i / d, at = i % d, id = ids[row];
    const double entry =
        id < 0 ? static_cast<double>(not_a_number()) : load64(codebook, codebook_dtype, id * codebook_stride + at);
    const double difference = entry - load64(z, z_dtype, row * z_stride + at);
    const double from_above = load64(grad_z_q, z_dtype, row * grad_stride_row + at * grad_stride_column);
    store(grad_z, z_dtype, i, static_cast<float>(from_above - scale * difference));
  }
}

// grad_codebook [K, D], of the codebook's type, contiguous: for each entry e the sum of (e - z) over the rows whose id
// it is, in the order of rows, times grad_codebook_loss 2 / (N D). Block (x, y) computes 128 entries in 32 dimensions.
// Each warp reads all ids and sums the rows of its own 32 entries, one dimension per lane; so it needs no sorting, no
// atomics and no barriers.
SEED_FAST_KERNEL(128, 2)
vector_quantize_bwd_codebook_kernel(const void* z, int z_dtype, long long n, int d, long long z_stride,
                                    const void* codebook, int codebook_dtype, int k, long long codebook_stride,
                                    const long long* ids, const float* grad_codebook_loss, void* grad_codebook) {
  SEED_FAST_SHARED(double, sums, [kEntriesPerBlock][kWarp]);
  constexpr int kOwn = kEntriesPerBlock / kWarps;
  const int lane = thread_index() % kWarp, warp = thread_index() / kWarp;
  const long long first = block_index_x() * kEntriesPerBlock + warp * kOwn;
  const int at = static_cast<int>(block_index_y()) * kWarp + lane;
  for (int i = 0; i < kOwn; ++i) sums[warp * kOwn + i][lane] = 0;

  // Read the ids in batches. A ballot tells all lanes which of 32 ids belong to this warp; those rows are added one by
  // one.
  for (long long base = 0; base < n; base += kLookahead * kWarp) {
    long long ahead[kLookahead];
    SEED_FAST_UNROLL
    for (int i = 0; i < kLookahead; ++i) {
      const long long row = base + i * kWarp + lane;
      ahead[i] = row < n ? ids[row] : -1;
    }
    SEED_FAST_UNROLL
    for (int i = 0; i < kLookahead; ++i) {
      unsigned mine = ballot(ahead[i] >= first && ahead[i] < first + kOwn);
      while (mine != 0) {  // `mine` is the same in all lanes, so they stay together
        const long long row = base + i * kWarp + lowest_bit(mine), id = ids[row];
        mine &= mine - 1;
        if (at < d) {
          sums[warp * kOwn + (id - first)][lane] +=
              load64(codebook, codebook_dtype, id * codebook_stride + at) - load64(z, z_dtype, row * z_stride + at);
        }
      }
    }
  }
  // Scale and store.
  const double elements = static_cast<double>(n) * d;
  const double scale = static_cast<double>(*grad_codebook_loss) * (2.0 / (elements < 1 ? 1 : elements));
  for (int i = 0; i < kOwn; ++i) {
    if (at < d && first + i < k) {
      store(grad_codebook, codebook_dtype, (first + i) * d + at,
            static_cast<float>(scale * sums[warp * kOwn + i][lane]));
    }
  }
}

}  // namespace seed_fast::vector_quantize

#include <limits>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "nearest_code.h"
#include "nearest_code_cuda.h"

namespace seed_fast {
namespace {

using nearest_code::kThreads;
using nearest_code::Partial;

static_assert(int(DType::float32) == nearest_code::kFloat32 && int(DType::float16) == nearest_code::kFloat16 &&
              int(DType::bfloat16) == nearest_code::kBFloat16);

constexpr int kRowsPerBlock = kThreads / 32;  // of the kernels in which a warp processes one row

void check_size(const char* name, int64_t size, int64_t limit) {
  if (size >= 0 && size <= limit) return;
  throw std::invalid_argument(std::string("nearest_code: the CUDA kernel takes ") + name + " up to " +
                              std::to_string(limit) + ", got " + std::to_string(size));
}

void check_sizes(int64_t N, int64_t K, int64_t D) {
  check_size("N", N, std::numeric_limits<int>::max());
  check_size("K", K, int64_t{1} << 30);
  check_size("D", D, nearest_code::kMaxDim);
}

// How many blocks of a screen keep the GPU busy. Three fit on a multiprocessor at once; with four rounds of them, it
// costs little if the last round is not full.
int wanted_blocks(int multiprocessors) { return multiprocessors * 3 * 4; }

nearest_code::Fragments fragments() { return cuda::architecture() < 75 ? nearest_code::kSm70 : nearest_code::kSm75; }

int64_t warps(int64_t N) { return (N - 1) / kRowsPerBlock + 1; }

}  // namespace

int64_t nearest_code_cuda_packed_bytes(int64_t K, int64_t D) {
  check_sizes(0, K, D);
  return nearest_code::PackedLayout(int(K), int(D)).bytes;
}

void pack_codebook_cuda(const void* codebook, DType dtype, int64_t K, int64_t D, int64_t row_stride, void* packed,
                        cudaStream_t stream) {
  check_sizes(0, K, D);
  const nearest_code::PackedLayout layout(static_cast<int>(K), static_cast<int>(D));
  const int k = int(K), d = int(D), tiles = nearest_code::code_tiles(k);
  const long long stride = row_stride;
  auto* const to = static_cast<unsigned char*>(packed);
  cuda::check(cudaMemsetAsync(packed, nearest_code::kHeaderFill, std::size_t(layout.norms64), stream),
              "clearing the header of a packed codebook");
  cuda::launch("pack_center_kernel", nearest_code::padded_dim(d), kThreads, stream, codebook, int(dtype), k, d, stride,
               to);
  cuda::launch("pack_entries_kernel", tiles, kThreads, stream, codebook, int(dtype), k, d, stride, to);
  cuda::launch("pack_screen_kernel", tiles, kThreads, stream, k, d, int(fragments()), to);
}

int64_t nearest_code_cuda_workspace_bytes(int64_t N, int64_t K, int64_t D, int multiprocessors) {
  check_sizes(N, K, D);
  return N == 0 ? 0 : nearest_code::Workspace(N, wanted_blocks(multiprocessors)).bytes;
}

void nearest_code_cuda(const void* z, DType dtype, int64_t N, int64_t D, int64_t row_stride, const void* packed,
                       int64_t K, int64_t* ids, float* margin, void* workspace, int multiprocessors,
                       cudaStream_t stream) {
  check_sizes(N, K, D);
  if (N == 0) return;
  const int type = int(dtype), d = int(D), k = int(K), wanted = wanted_blocks(multiprocessors);
  const long long n = N, stride = row_stride;
  const auto* codes = static_cast<const unsigned char*>(packed);
  auto* const found = reinterpret_cast<long long*>(ids);
  if (margin) {
    cuda::launch("nearest_code_margin_kernel", warps(N), kThreads, stream, z, type, n, d, stride, codes, k, found,
                 margin);
    return;
  }
  const nearest_code::Workspace layout(N, wanted);
  auto* const scratch = static_cast<unsigned char*>(workspace);
  auto* const count = reinterpret_cast<unsigned*>(scratch + layout.open_count);
  auto* const rows = reinterpret_cast<unsigned*>(scratch + layout.open_rows);
  auto* const partials = reinterpret_cast<Partial*>(scratch + layout.partials);
  const unsigned *const const_count = count, *const const_rows = rows;
  const Partial* const const_partials = partials;
  const nearest_code::Plan plan(N, k, wanted);
  const char* const screen =
      fragments() == nearest_code::kSm70 ? "nearest_code_fwd_sm70_kernel" : "nearest_code_fwd_sm75_kernel";
  cuda::check(cudaMemsetAsync(count, 0, sizeof *count, stream), "clearing the list of open rows");
  cuda::launch(screen, plan.blocks(), kThreads, stream, z, type, n, d, stride, codes, k, wanted, partials);
  cuda::launch("nearest_code_finish_kernel", warps(N), kThreads, stream, z, type, n, d, stride, codes, k, plan.shares,
               const_partials, count, rows, found);
  cuda::launch("nearest_code_fwd_rows_kernel", layout.blocks, kThreads, stream, z, type, d, stride, codes, k, wanted,
               const_count, const_rows, partials);
  cuda::launch("nearest_code_finish_rows_kernel", warps(N), kThreads, stream, z, type, d, stride, codes, k, wanted,
               const_count, const_rows, const_partials, found);
}

}  // namespace seed_fast

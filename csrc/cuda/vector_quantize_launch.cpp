#include <algorithm>

#include "launch.h"
#include "vector_quantize_cuda.h"

namespace seed_fast {
namespace {

constexpr int kThreads = 128;          // of every kernel in vector_quantize.cu
constexpr int kRowsPerBlock = 32;      // of its forward kernel
constexpr int kEntriesPerBlock = 128;  // of its codebook gradient
constexpr int kMostBlocks = 4096;      // of its gradient of z; with more elements, threads process several

int64_t row_blocks(int64_t N) { return (N + kRowsPerBlock - 1) / kRowsPerBlock; }

}  // namespace

int64_t vector_quantize_cuda_workspace_bytes(int64_t N) { return row_blocks(N) * int64_t(sizeof(double)); }

void vector_quantize_cuda(const DeviceMatrix& z, const DeviceMatrix& codebook, int64_t D, const int64_t* ids, void* z_q,
                          float* commit, float* codebook_loss, void* workspace, cudaStream_t stream) {
  const int d = int(D);
  const long long n = z.rows, blocks = row_blocks(z.rows), z_stride = z.stride, codebook_stride = codebook.stride;
  auto* const sums = static_cast<double*>(workspace);
  if (n > 0) {
    cuda::launch("vector_quantize_fwd_kernel", blocks, kThreads, stream, z.data, int(z.dtype), n, d, z_stride,
                 codebook.data, int(codebook.dtype), codebook_stride, reinterpret_cast<const long long*>(ids), z_q,
                 sums);
  }
  cuda::launch("vector_quantize_loss_kernel", 1, kThreads, stream, static_cast<const double*>(sums), blocks,
               double(n) * d, commit, codebook_loss);
}

void vector_quantize_backward_cuda(const DeviceMatrix& z, const DeviceMatrix& codebook, int64_t D, const int64_t* ids,
                                   const void* grad_z_q, int64_t grad_stride_row, int64_t grad_stride_column,
                                   const float* grad_commit, const float* grad_codebook_loss, void* grad_z,
                                   void* grad_codebook, cudaStream_t stream) {
  const int d = int(D);
  const long long n = z.rows, z_stride = z.stride, codebook_stride = codebook.stride;
  const auto* const all_ids = reinterpret_cast<const long long*>(ids);
  if (grad_z && n > 0) {
    const long long blocks = std::min<long long>((n * d - 1) / kThreads + 1, kMostBlocks);
    cuda::launch("vector_quantize_bwd_z_kernel", blocks, kThreads, stream, z.data, int(z.dtype), n, d, z_stride,
                 codebook.data, int(codebook.dtype), codebook_stride, all_ids, grad_z_q,
                 static_cast<long long>(grad_stride_row), static_cast<long long>(grad_stride_column), grad_commit,
                 blocks, grad_z);
  }
  if (grad_codebook) {
    const dim3 grid(unsigned((codebook.rows - 1) / kEntriesPerBlock + 1), unsigned((d - 1) / 32 + 1));
    cuda::launch("vector_quantize_bwd_codebook_kernel", grid, kThreads, stream, z.data, int(z.dtype), n, d, z_stride,
                 codebook.data, int(codebook.dtype), int(codebook.rows), codebook_stride, all_ids, grad_codebook_loss,
                 grad_codebook);
  }
}

}  // namespace seed_fast

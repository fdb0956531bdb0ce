#include <limits>
#include <stdexcept>
#include <string>

#include "library.h"
#include "nearest_code_cuda.h"
#include "nearest_code_plan.h"

namespace seed_fast {
namespace {

using nearest_code::kThreads;

static_assert(int(DType::float32) == nearest_code::kFloat32 && int(DType::float16) == nearest_code::kFloat16 &&
              int(DType::bfloat16) == nearest_code::kBFloat16);

void check_size(const char* name, int64_t size, int64_t limit) {
  if (size >= 0 && size <= limit) return;
  throw std::invalid_argument(std::string("nearest_code: the CUDA kernel takes ") + name + " up to " +
                              std::to_string(limit) + ", got " + std::to_string(size));
}

void check_sizes(int64_t N, int64_t K, int64_t D) {
  check_size("N", N, int64_t{1} << 32);
  check_size("K", K, std::numeric_limits<int>::max() - kThreads);
  check_size("D", D, nearest_code::kMaxDim);
}

// `args` have exactly the types of the kernel's parameters.
template <class... Args>
void launch(const char* name, int64_t grid_x, int grid_y, cudaStream_t stream, Args... args) {
  void* pointers[] = {&args...};
  const dim3 grid(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y));
  const void* const kernel = reinterpret_cast<const void*>(cuda::get_kernel(name));
  const std::string doing = std::string("launching ") + name;
  cuda::check(cudaLaunchKernel(kernel, grid, dim3(kThreads), pointers, 0, stream), doing.c_str());
}

}  // namespace

int64_t nearest_code_cuda_packed_bytes(int64_t K, int64_t D) {
  check_sizes(0, K, D);
  return nearest_code::PackedLayout(int(K), int(D)).bytes;
}

void pack_codebook_cuda(const void* codebook, DType dtype, int64_t K, int64_t D, int64_t row_stride, void* packed,
                        cudaStream_t stream) {
  check_sizes(0, K, D);
  cuda::check(cudaMemsetAsync(packed, nearest_code::kHeaderFill, sizeof(nearest_code::PackedHeader), stream),
              "clearing the header of a packed codebook");
  launch("pack_codebook_kernel", nearest_code::code_tiles(int(K)), 1, stream, codebook, int(dtype), int(K), int(D),
         static_cast<long long>(row_stride), static_cast<unsigned char*>(packed));
}

int64_t nearest_code_cuda_workspace_bytes(int64_t N, int64_t K, int64_t D, int multiprocessors) {
  check_sizes(N, K, D);
  return N == 0 ? 0 : nearest_code::Plan(N, int(K), multiprocessors).workspace_bytes(N);
}

void nearest_code_cuda(const void* z, DType dtype, int64_t N, int64_t D, int64_t row_stride, const void* packed,
                       int64_t K, int64_t* ids, float* margin, void* workspace, int multiprocessors,
                       cudaStream_t stream) {
  check_sizes(N, K, D);
  if (N == 0) return;
  const nearest_code::Plan plan(N, int(K), multiprocessors);
  const long long n = N, stride = row_stride;
  const auto* codes = static_cast<const unsigned char*>(packed);
  auto* partials = static_cast<nearest_code::Partial*>(workspace);
  const char* const screen = plan.block_rows == 32 ? "nearest_code_fwd_rows32_kernel" : "nearest_code_fwd_kernel";
  launch(screen, plan.row_blocks, plan.shares, stream, z, int(dtype), n, int(D), stride, codes, int(K),
         plan.tiles_per_block, partials);
  constexpr int kRowsPerBlock = kThreads / 32;  // one warp each
  launch("nearest_code_finish_kernel", (N - 1) / kRowsPerBlock + 1, 1, stream, z, int(dtype), n, int(D), stride, codes,
         int(K), plan.shares, static_cast<const nearest_code::Partial*>(partials), reinterpret_cast<long long*>(ids),
         margin);
}

}  // namespace seed_fast

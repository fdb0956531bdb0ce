// seed_fast._C: attention on CUDA. A tensor [B, L, H, D] is (address, its four strides in elements); the stream is an
// integer.
#if SEED_FAST_WITH_CUDA
#include <pybind11/pybind11.h>

#include <tuple>

#include "attention_cuda.h"

namespace py = pybind11;

namespace seed_fast {
namespace {

using CudaTensor = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;

AttentionTensor tensor(const CudaTensor& from) {
  const auto& [data, stride_b, stride_l, stride_h, stride_d] = from;
  return {reinterpret_cast<const void*>(data), stride_b, stride_l, stride_h, stride_d};
}

}  // namespace

void bind_attention_cuda(py::module_& m) {
  m.def(
      "attention_cuda",
      [](const CudaTensor& q, const CudaTensor& k, const CudaTensor& v, uintptr_t out, int dtype, int64_t b, int64_t lq,
         int64_t lk, int64_t h, int64_t d, bool causal, double scale, uintptr_t stream) {
        py::gil_scoped_release release;
        attention_cuda(tensor(q), tensor(k), tensor(v), reinterpret_cast<void*>(out), DType(dtype), b, lq, lk, h, d,
                       causal, float(scale), reinterpret_cast<cudaStream_t>(stream));
      },
      "q [B, Lq, H, D], k and v [B, Lk, H, D] -> out [B, Lq, H, D], contiguous.");
}

}  // namespace seed_fast
#endif

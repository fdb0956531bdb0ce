// seed_fast._C: bias_gelu on CUDA. A matrix is (address, row stride in elements).
#if SEED_FAST_WITH_CUDA
#include <pybind11/pybind11.h>

#include <tuple>

#include "bias_gelu_cuda.h"

namespace py = pybind11;

namespace seed_fast {

void bind_bias_gelu_cuda(py::module_& m) {
  using Matrix = std::tuple<uintptr_t, int64_t>;
  m.def(
      "bias_gelu_cuda",
      [](const Matrix& x, int x_dtype, uintptr_t bias, int bias_dtype, const Matrix& y, int64_t n, int64_t d,
         uintptr_t queue) {
        const BiasGelu problem{reinterpret_cast<const void*>(std::get<0>(x)),
                               DType(x_dtype),
                               std::get<1>(x),
                               reinterpret_cast<const void*>(bias),
                               DType(bias_dtype),
                               reinterpret_cast<void*>(std::get<0>(y)),
                               std::get<1>(y),
                               n,
                               d};
        py::gil_scoped_release release;
        bias_gelu_cuda(problem, reinterpret_cast<cudaStream_t>(queue));
      },
      "x [N, D], bias [D] -> y [N, D] of x's type, which may be x itself.");
}

}  // namespace seed_fast
#endif

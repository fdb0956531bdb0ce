// seed_fast._C: add_layer_norm on CUDA. A matrix is (address, dtype, row stride in elements); address 0: not wanted.
#if SEED_FAST_WITH_CUDA
#include <pybind11/pybind11.h>

#include <tuple>

#include "add_layer_norm_cuda.h"

namespace py = pybind11;

namespace seed_fast {

void bind_add_layer_norm_cuda(py::module_& m) {
  using Matrix = std::tuple<uintptr_t, int, int64_t>;
  m.def(
      "add_layer_norm_cuda",
      [](const Matrix& x, const Matrix& delta, uintptr_t weight, uintptr_t bias, double eps, bool post_norm,
         const Matrix& stream, const Matrix& y, int64_t n, int64_t d, uintptr_t queue) {
        const auto matrix = [](const Matrix& from) {
          return NormMatrix{reinterpret_cast<void*>(std::get<0>(from)), DType(std::get<1>(from)), std::get<2>(from)};
        };
        const AddLayerNorm problem{matrix(x),
                                   matrix(delta),
                                   reinterpret_cast<const float*>(weight),
                                   reinterpret_cast<const float*>(bias),
                                   float(eps),
                                   post_norm,
                                   matrix(stream),
                                   matrix(y),
                                   n,
                                   d};
        py::gil_scoped_release release;
        add_layer_norm_cuda(problem, reinterpret_cast<cudaStream_t>(queue));
      },
      "x, delta [N, D], weight, bias [D] float32 -> stream [N, D] (x + delta, or the norm), y [N, D] (the norm).");
}

}  // namespace seed_fast
#endif

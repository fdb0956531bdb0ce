// seed_fast._C: relu_squared on the CPU.
#include <pybind11/pybind11.h>

#include "relu_squared_cpu.h"

namespace py = pybind11;

namespace seed_fast {

void bind_relu_squared(py::module_& m) {
  m.def(
      "relu_squared_cpu",
      [](uintptr_t x, uintptr_t y, int64_t n, int threads) {
        relu_squared_cpu(reinterpret_cast<const float*>(x), reinterpret_cast<float*>(y), n, threads);
      },
      py::call_guard<py::gil_scoped_release>(), "x [N] -> y [N], both float32 and contiguous.");
}

}  // namespace seed_fast

// seed_fast._C: vector_quantize on CUDA. A matrix is (address, dtype, rows, row stride), strides in elements.
#if SEED_FAST_WITH_CUDA
#include <pybind11/pybind11.h>

#include <tuple>

#include "vector_quantize_cuda.h"

namespace py = pybind11;

namespace seed_fast {
namespace {

using Matrix = std::tuple<uintptr_t, int, int64_t, int64_t>;

DeviceMatrix matrix(const Matrix& from) {
  return {reinterpret_cast<const void*>(std::get<0>(from)), DType(std::get<1>(from)), std::get<2>(from),
          std::get<3>(from)};
}

}  // namespace

void bind_vector_quantize_cuda(py::module_& m) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("vector_quantize_cuda_workspace_bytes", &vector_quantize_cuda_workspace_bytes, py::arg("n"));
  m.def(
      "vector_quantize_cuda",
      [](const Matrix& z, const Matrix& codebook, int64_t d, uintptr_t ids, uintptr_t z_q, uintptr_t commit,
         uintptr_t codebook_loss, uintptr_t workspace, uintptr_t stream) {
        vector_quantize_cuda(matrix(z), matrix(codebook), d, reinterpret_cast<const int64_t*>(ids),
                             reinterpret_cast<void*>(z_q), reinterpret_cast<float*>(commit),
                             reinterpret_cast<float*>(codebook_loss), reinterpret_cast<void*>(workspace),
                             reinterpret_cast<cudaStream_t>(stream));
      },
      unlocked(), py::arg("z"), py::arg("codebook"), py::arg("d"), py::arg("ids"), py::arg("z_q"), py::arg("commit"),
      py::arg("codebook_loss"), py::arg("workspace"), py::arg("stream"),
      "z [N, D], codebook [K, D] and their ids [N] -> z_q [N, D], commit [], codebook_loss [].");
  m.def(
      "vector_quantize_backward_cuda",
      [](const Matrix& z, const Matrix& codebook, int64_t d, uintptr_t ids,
         const std::tuple<uintptr_t, int64_t, int64_t>& grad_z_q, uintptr_t grad_commit, uintptr_t grad_codebook_loss,
         uintptr_t grad_z, uintptr_t grad_codebook, uintptr_t stream) {
        vector_quantize_backward_cuda(
            matrix(z), matrix(codebook), d, reinterpret_cast<const int64_t*>(ids),
            reinterpret_cast<const void*>(std::get<0>(grad_z_q)), std::get<1>(grad_z_q), std::get<2>(grad_z_q),
            reinterpret_cast<const float*>(grad_commit), reinterpret_cast<const float*>(grad_codebook_loss),
            reinterpret_cast<void*>(grad_z), reinterpret_cast<void*>(grad_codebook),
            reinterpret_cast<cudaStream_t>(stream));
      },
      unlocked(), py::arg("z"), py::arg("codebook"), py::arg("d"), py::arg("ids"), py::arg("grad_z_q"),
      py::arg("grad_commit"), py::arg("grad_codebook_loss"), py::arg("grad_z"), py::arg("grad_codebook"),
      py::arg("stream"), "-> grad_z [N, D], grad_codebook [K, D]; address 0: not wanted. grad_z_q has both strides.");
}

}  // namespace seed_fast
#endif

// seed_fast._C: nearest_code on CUDA. Addresses and streams are integers; strides count elements.
#if SEED_FAST_WITH_CUDA
#include <pybind11/pybind11.h>

#include "nearest_code_cuda.h"

namespace py = pybind11;

namespace seed_fast {

void bind_nearest_code_cuda(py::module_& m) {
  using unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("nearest_code_cuda_packed_bytes", &nearest_code_cuda_packed_bytes, py::arg("k"), py::arg("d"));
  m.def(
      "pack_codebook_cuda",
      [](uintptr_t codebook, int dtype, int64_t k, int64_t d, int64_t row_stride, uintptr_t packed, uintptr_t stream) {
        pack_codebook_cuda(reinterpret_cast<const void*>(codebook), DType(dtype), k, d, row_stride,
                           reinterpret_cast<void*>(packed), reinterpret_cast<cudaStream_t>(stream));
      },
      unlocked(), py::arg("codebook"), py::arg("dtype"), py::arg("k"), py::arg("d"), py::arg("row_stride"),
      py::arg("packed"), py::arg("stream"),
      "codebook [K, D] -> packed; its first int32 becomes the lowest entry with a bad norm, or -1.");
  m.def("nearest_code_cuda_workspace_bytes", &nearest_code_cuda_workspace_bytes, py::arg("n"), py::arg("k"),
        py::arg("d"), py::arg("num_sms"));
  m.def(
      "nearest_code_cuda",
      [](uintptr_t z, int dtype, int64_t n, int64_t d, int64_t row_stride, uintptr_t packed, int64_t k, uintptr_t ids,
         uintptr_t margin, uintptr_t workspace, int num_sms, uintptr_t stream) {
        nearest_code_cuda(reinterpret_cast<const void*>(z), DType(dtype), n, d, row_stride,
                          reinterpret_cast<const void*>(packed), k, reinterpret_cast<int64_t*>(ids),
                          reinterpret_cast<float*>(margin), reinterpret_cast<void*>(workspace), num_sms,
                          reinterpret_cast<cudaStream_t>(stream));
      },
      unlocked(), py::arg("z"), py::arg("dtype"), py::arg("n"), py::arg("d"), py::arg("row_stride"), py::arg("packed"),
      py::arg("k"), py::arg("ids"), py::arg("margin"), py::arg("workspace"), py::arg("num_sms"), py::arg("stream"),
      "z [N, D] against packed -> ids [N], margin [N] (0: none); id -1 where there is no nearest entry.");
}

}  // namespace seed_fast
#endif

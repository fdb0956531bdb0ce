// seed_fast._C: nearest_code on the CPU. Addresses are integers; strides count elements.
#include <pybind11/pybind11.h>

#include <string>

#include "nearest_code_cpu.h"

namespace py = pybind11;

namespace seed_fast {

void bind_nearest_code(py::module_& m) {
  m.def("nearest_code_cpu_packed_bytes", &nearest_code_cpu_packed_bytes, py::arg("k"), py::arg("d"));
  m.def(
      "pack_codebook_cpu",
      [](uintptr_t codebook, int dtype, int64_t k, int64_t d, int64_t stride_k, int64_t stride_d, uintptr_t packed,
         int threads, const std::string& isa) {
        const Isa highest = parse_isa(isa);
        py::gil_scoped_release release;
        return pack_codebook_cpu(reinterpret_cast<const void*>(codebook), DType(dtype), k, d, stride_k, stride_d,
                                 reinterpret_cast<void*>(packed), threads, highest);
      },
      "codebook [K, D] -> packed; first entry with a bad norm, or -1.");
  m.def(
      "nearest_code_cpu",
      [](uintptr_t z, int dtype, int64_t n, int64_t d, int64_t stride_n, int64_t stride_d, uintptr_t packed, int64_t k,
         uintptr_t ids, uintptr_t margin, int threads, const std::string& isa) {
        const Isa highest = parse_isa(isa);
        py::gil_scoped_release release;
        return nearest_code_cpu(reinterpret_cast<const void*>(z), DType(dtype), n, d, stride_n, stride_d,
                                reinterpret_cast<const void*>(packed), k, reinterpret_cast<int64_t*>(ids),
                                reinterpret_cast<float*>(margin), threads, highest);
      },
      "z [N, D] against packed -> ids [N], margin [N] (0: none); first row with a bad norm, or -1.");
}

}  // namespace seed_fast

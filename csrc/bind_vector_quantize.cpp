// seed_fast._C: vector_quantize on the CPU. A matrix is (address, row stride, column stride), strides in elements.
#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "nearest_code_cpu.h"
#include "vector_quantize_cpu.h"

namespace py = pybind11;

namespace seed_fast {
namespace {

using Matrix = std::tuple<uintptr_t, int64_t, int64_t>;

ConstMatrix matrix(const Matrix& from) {
  return {reinterpret_cast<const void*>(std::get<0>(from)), std::get<1>(from), std::get<2>(from)};
}

}  // namespace

void bind_vector_quantize(py::module_& m) {
  m.def(
      "vector_quantize_cpu",
      [](uintptr_t z, int dtype, int64_t n, int64_t d, int64_t stride_n, int64_t stride_d, uintptr_t packed, int64_t k,
         uintptr_t z_q, uintptr_t ids, uintptr_t squares, int threads, const std::string& isa) {
        const Isa highest = parse_isa(isa);
        py::gil_scoped_release release;
        return vector_quantize_cpu(reinterpret_cast<const void*>(z), DType(dtype), n, d, stride_n, stride_d,
                                   reinterpret_cast<const void*>(packed), k, reinterpret_cast<void*>(z_q),
                                   reinterpret_cast<int64_t*>(ids), reinterpret_cast<double*>(squares), threads,
                                   highest);
      },
      "z [N, D] against packed -> z_q [N, D], ids [N], squares [N]; first row with a bad norm, or -1.");
  m.def(
      "vector_quantize_backward_cpu",
      [](const Matrix& z, const Matrix& codebook, uintptr_t ids, const Matrix& grad_z_q, double grad_commit,
         double grad_codebook_loss, int z_dtype, int codebook_dtype, int64_t n, int64_t d, int64_t k, uintptr_t grad_z,
         uintptr_t grad_codebook, int threads) {
        vector_quantize_backward_cpu(matrix(z), matrix(codebook), reinterpret_cast<const int64_t*>(ids),
                                     matrix(grad_z_q), grad_commit, grad_codebook_loss, DType(z_dtype),
                                     DType(codebook_dtype), n, d, k, reinterpret_cast<void*>(grad_z),
                                     reinterpret_cast<void*>(grad_codebook), threads);
      },
      py::call_guard<py::gil_scoped_release>(), "-> grad_z [N, D], grad_codebook [K, D]; address 0: not wanted.");
}

}  // namespace seed_fast

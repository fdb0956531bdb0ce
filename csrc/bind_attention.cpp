// seed_fast._C: attention on the CPU. A tensor [B, L, H, D] is (address, its four strides in elements).
#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "attention_cpu.h"

namespace py = pybind11;

namespace seed_fast {
namespace {

using Tensor = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t>;

AttentionTensor tensor(const Tensor& from) {
  const auto& [data, stride_b, stride_l, stride_h, stride_d] = from;
  return {reinterpret_cast<const void*>(data), stride_b, stride_l, stride_h, stride_d};
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def(
      "attention_cpu",
      [](const Tensor& q, const Tensor& k, const Tensor& v, uintptr_t out, uintptr_t lse, int dtype, int64_t b, int64_t lq, int64_t lk,
         int64_t h, int64_t d, bool causal, double scale, int threads, const std::string& isa) {
        const Isa highest = parse_isa(isa);
        py::gil_scoped_release release;
        attention_cpu(tensor(q), tensor(k), tensor(v), reinterpret_cast<void*>(out),
                      reinterpret_cast<float*>(lse), DType(dtype), b, lq, lk, h, d,
                      causal, float(scale), threads, highest);
      },
      "q [B, Lq, H, D], k and v [B, Lk, H, D] -> out [B, Lq, H, D] contiguous, lse [B, H, Lq] (0: none).");
}

}  // namespace seed_fast

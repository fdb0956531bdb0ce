// Instruction sets that this CPU and its operating system can run, for the kernels' dispatch and `seed-fast info`.
#pragma once

#include <string>
#include <vector>

namespace seed_fast {

struct CpuFeatures {
  bool avx2 = false;         // AVX2 with FMA and F16C: what *_avx2.cpp is compiled for
  bool avx512 = false;       // AVX-512 F, BW, DQ and VL with FMA: *_avx512.cpp
  bool avx512_bf16 = false;  // plus AVX512_BF16: *_avx512bf16.cpp
  bool avx512_vnni = false;  // plus AVX512_VNNI: *_avx512vnni.cpp
};

// Detected once. A feature counts only where the operating system saves its registers (XCR0), so that a kernel never
// meets an illegal instruction inside a virtual machine that hides AVX-512 state.
const CpuFeatures& cpu_features();

// Names of the features that are there, in the order of the struct.
std::vector<std::string> cpu_feature_names();

}  // namespace seed_fast

#include "cpu_features.h"

#include <cstdint>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace seed_fast {
namespace {

#if defined(__x86_64__)

bool bit(unsigned value, int index) { return (value >> index) & 1u; }

// Register state that the operating system saves on a context switch. Inline assembly, because the intrinsic needs
// -mxsave for the whole file.
std::uint64_t saved_state() {
  std::uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

// Own CPUID reading instead of __builtin_cpu_supports: that one needs a symbol of libgcc which the compiler of the
// release wheels does not bring.
CpuFeatures detect() {
  CpuFeatures found;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return found;
  const bool osxsave = bit(ecx, 27), fma = bit(ecx, 12), f16c = bit(ecx, 29);
  if (!osxsave) return found;
  constexpr std::uint64_t ymm_state = 0x06;  // XMM and the upper halves of YMM
  constexpr std::uint64_t zmm_state = 0xE6;  // and opmask, upper ZMM, ZMM16 to 31
  const std::uint64_t state = saved_state();

  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return found;
  const unsigned max_subleaf = eax;
  found.avx2 = (state & ymm_state) == ymm_state && bit(ebx, 5) && fma && f16c;
  const bool f = bit(ebx, 16), dq = bit(ebx, 17), bw = bit(ebx, 30), vl = bit(ebx, 31);
  found.avx512 = found.avx2 && (state & zmm_state) == zmm_state && f && dq && bw && vl;
  found.avx512_vnni = found.avx512 && bit(ecx, 11);
  if (max_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    found.avx512_bf16 = found.avx512 && bit(eax, 5);
  }
  return found;
}

#else

CpuFeatures detect() { return {}; }

#endif

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

std::vector<std::string> cpu_feature_names() {
  const CpuFeatures& found = cpu_features();
  std::vector<std::string> names;
  if (found.avx2) names.emplace_back("avx2");
  if (found.avx512) names.emplace_back("avx512");
  if (found.avx512_bf16) names.emplace_back("avx512_bf16");
  if (found.avx512_vnni) names.emplace_back("avx512_vnni");
  return names;
}

}  // namespace seed_fast

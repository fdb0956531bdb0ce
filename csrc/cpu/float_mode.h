// Protects results from the floating-point mode of the calling thread: torch.set_flush_denormal(True) replaces
// subnormal numbers by zero in it, which would change ids.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace seed_fast {

// While an object of this class exists, its thread rounds to nearest and keeps subnormal numbers.
class FloatMode {
#if defined(__x86_64__)
 public:
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatMode() { _mm_setcsr(saved_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  unsigned saved_;
#else
 public:
  ~FloatMode() {}
#endif
};

}  // namespace seed_fast

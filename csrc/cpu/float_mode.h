// Subnormals are numbers: torch.set_flush_denormal turns them into zeros in the calling thread, which would change ids.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace seed_fast {

// While it lives, this thread rounds to nearest and keeps subnormals.
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

// Host version of csrc/cuda/device_math.h.
#pragma once

namespace seed_fast::device {

inline float reciprocal(float value) { return 1 / value; }

}  // namespace seed_fast::device

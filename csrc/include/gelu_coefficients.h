// Coefficients of GELU(x) = x Phi(x) in float32, where Phi is the distribution function of the standard normal
// distribution; for the kernels of the CPU and of CUDA.
//
//   |x| < kNearEdge:  Phi(x) = 0.5 + x (n0 + n1 x^2 + ... + n5 x^10)
//   beyond:           Phi(-a) = exp(-a^2 / 2) (f1 t + ... + f7 t^7), t = 1 / (1 + kFarPole a)
//
// The fits minimise the largest relative error, which in exact arithmetic is 1e-8 for Phi(x) near 0 and 5e-8 for
// Phi(-a) up to a = 14, where it falls below the float32 range. Beyond the edge GELU(a) = a - a Phi(-a) and GELU(-a) =
// -a Phi(-a): there is no cancellation, so small results are as precise as large ones.
#pragma once

namespace seed_fast::gelu {

constexpr float kNearEdge = 1.25f;
constexpr float kNear0 = 0x1.988452p-2f, kNear1 = -0x1.10580ap-4f, kNear2 = 0x1.46c592p-7f, kNear3 = -0x1.3655f8p-10f,
                kNear4 = 0x1.d1bd7ep-14f, kNear5 = -0x1.c8fa26p-18f;
constexpr float kFarPole = 0.28f;
constexpr float kFar1 = 0x1.c96690p-4f, kFar2 = 0x1.cc4b4ep-4f, kFar3 = 0x1.8ebf8cp-4f, kFar4 = 0x1.c4f8c6p-4f,
                kFar5 = -0x1.23fe7cp-8f, kFar6 = 0x1.0e6a9ep-3f, kFar7 = -0x1.e8afaap-5f;
constexpr float kFarEnd = 15.0f;  // here Phi(-a) is 0 in float32; |x| is clamped to it, because infinity * 0 is NaN

}  // namespace seed_fast::gelu

// The normal distribution function Phi, of which GELU(x) is x times, in float32; for the kernels of both devices.
//
//   |x| < kNearEdge:  Phi(x) = 0.5 + x (n0 + n1 x^2 + ... + n5 x^10)
//   beyond:           Phi(-a) = exp(-a^2 / 2) (f1 t + ... + f7 t^7), t = 1 / (1 + kFarPole a)
//
// Fitted for the least largest relative error in exact arithmetic: 1e-8 of the factor of x near 0, 5e-8 of Phi(-a) up
// to a = 14, where it is less than float32 can hold. Beyond the edge, GELU(a) = a - a Phi(-a) and GELU(-a) = -a
// Phi(-a): nothing cancels, so small results are as precise as large ones.
#pragma once

namespace seed_fast::gelu {

constexpr float kNearEdge = 1.25f;
constexpr float kNear0 = 0x1.988452p-2f, kNear1 = -0x1.10580ap-4f, kNear2 = 0x1.46c592p-7f, kNear3 = -0x1.3655f8p-10f,
                kNear4 = 0x1.d1bd7ep-14f, kNear5 = -0x1.c8fa26p-18f;
constexpr float kFarPole = 0.28f;
constexpr float kFar1 = 0x1.c96690p-4f, kFar2 = 0x1.cc4b4ep-4f, kFar3 = 0x1.8ebf8cp-4f, kFar4 = 0x1.c4f8c6p-4f,
                kFar5 = -0x1.23fe7cp-8f, kFar6 = 0x1.0e6a9ep-3f, kFar7 = -0x1.e8afaap-5f;
constexpr float kFarEnd = 15.0f;  // Phi(-a) is 0 in float32; an infinity cut to it times 0 is 0, not NaN

}  // namespace seed_fast::gelu

// SPDX-License-Identifier: Apache-2.0
// exp and sigmoid of our own, so that an activation does not depend on a framework's or a libm's version.
// The same source serves host and device. Every step that rounds is written out (explicit fma), so the
// compiler's contraction setting changes nothing.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/offsets.h"

namespace grouped {

GROUPED_HD float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
GROUPED_HD double multiply_add(double a, double b, double c) { return fma(a, b, c); }

template <typename To, typename From>
GROUPED_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as reinterprets, it does not convert");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Shifted unsigned, because a NaN on the way here makes n any number.
GROUPED_HD float power_of_two(int32_t n) { return bits_as<float>((static_cast<uint32_t>(n) + 127u) << 23); }
GROUPED_HD double power_of_two(int64_t n) {
  return bits_as<double>((static_cast<uint64_t>(n) + 1023u) << 52);
}

// e^x within 1 ulp, for x <= 0. x is first clamped to where the result is 0; NaN stays NaN.
GROUPED_HD float exponential(float x) {
  x = x < -105.0f ? -105.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = multiply_add(x, 1.44269504088896341f, kRound);
  const float n = shifted - kRound;
  float r = multiply_add(n, -0.693359375f, x);
  r = multiply_add(n, 2.12194440054690583e-4f, r);
  float p = 1.9875691500e-4f;  // minimax of (e^r - 1 - r) / r^2 on |r| <= ln(2)/2
  p = multiply_add(p, r, 1.3981999507e-3f);
  p = multiply_add(p, r, 8.3334519073e-3f);
  p = multiply_add(p, r, 4.1665795894e-2f);
  p = multiply_add(p, r, 1.6666665459e-1f);
  p = multiply_add(p, r, 5.0000001201e-1f);
  p = multiply_add(p, r * r, r) + 1.0f;
  // Two factors, because 2^n alone leaves the format where the product does not.
  const int32_t k = bits_as<int32_t>(shifted) - bits_as<int32_t>(kRound);
  return p * power_of_two(k + 64) * 0x1p-64f;
}

GROUPED_HD double exponential(double x) {
  x = x < -750.0 ? -750.0 : x;
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  const double shifted = multiply_add(x, 1.44269504088896338700, kRound);
  const double n = shifted - kRound;
  double r = multiply_add(n, -6.93147180369123816490e-01, x);
  r = multiply_add(n, -1.90821492927058770002e-10, r);
  double p = 1.0 / 6227020800.0;  // Taylor to r^13: the rest is below 2^-58 on |r| <= ln(2)/2
  p = multiply_add(p, r, 1.0 / 479001600.0);
  p = multiply_add(p, r, 1.0 / 39916800.0);
  p = multiply_add(p, r, 1.0 / 3628800.0);
  p = multiply_add(p, r, 1.0 / 362880.0);
  p = multiply_add(p, r, 1.0 / 40320.0);
  p = multiply_add(p, r, 1.0 / 5040.0);
  p = multiply_add(p, r, 1.0 / 720.0);
  p = multiply_add(p, r, 1.0 / 120.0);
  p = multiply_add(p, r, 1.0 / 24.0);
  p = multiply_add(p, r, 1.0 / 6.0);
  p = multiply_add(p, r, 0.5);
  p = multiply_add(p, r * r, r) + 1.0;
  const int64_t k = bits_as<int64_t>(shifted) - bits_as<int64_t>(kRound);
  return p * power_of_two(k + 512) * 0x1p-512;
}

#ifdef __CUDA_ARCH__
// The GPU's own functions, without its branches for denormal numbers.
__device__ __forceinline__ float hardware_reciprocal(float d) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  return r;
}
__device__ __forceinline__ float hardware_power_of_two(float x) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
}
#endif

// 1 / d rounded once, for d in [1, 2] or NaN: the GPU's division without its branch for other numbers, which
// costs as much as the exponential.
GROUPED_HD float reciprocal(float d) {
#ifdef __CUDA_ARCH__
  const float r = hardware_reciprocal(d);
  return multiply_add(r, -multiply_add(d, r, -1.0f), r);
#else
  return 1.0f / d;
#endif
}
GROUPED_HD double reciprocal(double d) { return 1.0 / d; }

template <typename A>
struct Sigmoid {
  A value, complement;  // complement = 1 - value without the cancellation
};

// Built on e^-|x|, which never overflows.
template <typename A>
GROUPED_HD Sigmoid<A> sigmoid(A x) {
  const A e = exponential(-std::fabs(x));
  const A large = reciprocal(A(1) + e);
  const A small = e * large;
  return x < A(0) ? Sigmoid<A>{small, large} : Sigmoid<A>{large, small};
}

// The same for results of kBits bits. 16 of them need no more than the GPU's own functions, which are 2^-22
// off: a third of the instructions (docs/kernel-log.md, 84).
template <int kBits, typename A>
GROUPED_HD Sigmoid<A> sigmoid_for(A x) {
#ifdef __CUDA_ARCH__
  if constexpr (kBits <= 16) {
    // Its square is e^-|x|, but it stays a normal number where that does not.
    const float root = hardware_power_of_two(std::fabs(x) * -0.72134752044448170f);
    const float e = root * root;
    const float large = hardware_reciprocal(multiply_add(root, root, 1.0f));
    const float small = e * large;
    return x < 0.0f ? Sigmoid<A>{small, large} : Sigmoid<A>{large, small};
  }
#endif
  return sigmoid(x);
}

}  // namespace grouped

// SPDX-License-Identifier: Apache-2.0
// The activations, one element at a time, value and derivative: what both backends compute.
#pragma once

#include "core/math.h"

namespace grouped {

template <typename A>
struct ActivationParams {
  A alpha, limit, offset;
};

GROUPED_HD constexpr bool is_gated(int32_t kind) { return kind != GROUPED_SQUARED_RELU; }

template <typename A>
struct ActivationGradient {
  A value, d_gate, d_up;  // d_up is 0 where there is no gate
};

// Comparisons are written so that a NaN passes through.
template <typename A>
GROUPED_HD A clamp_between(A x, A low, A high) {
  return x > high ? high : x < low ? low : x;
}

// gelu(x) = x * sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form without a tanh.
template <typename A>
struct GeluArgument {
  A twice_u, twice_du, x;  // x as clamped
};
template <typename A>
GROUPED_HD GeluArgument<A> gelu_argument(A x) {
  // Beyond 32 the sigmoid is 0 or 1 in every format, and x^3 must not overflow.
  const A c = clamp_between(x, A(-32), A(32));
  const A square = c * c;
  constexpr A kScale = A(1.5957691216057307117597842397375);  // 2 sqrt(2/pi)
  return {kScale * c * multiply_add(A(0.044715), square, A(1)),
          kScale * multiply_add(A(3 * 0.044715), square, A(1)), c};
}

// kBits: of the results that are made of it.
template <int32_t kKind, int kBits, typename A>
GROUPED_HD A activation_value(A gate, A up, const ActivationParams<A>& p) {
  if constexpr (kKind == GROUPED_SWIGLU) {
    return gate * sigmoid_for<kBits>(gate).value * up;
  } else if constexpr (kKind == GROUPED_CLAMPED_SWIGLU) {
    const A g = gate > p.limit ? p.limit : gate;
    return g * sigmoid_for<kBits>(p.alpha * g).value * (clamp_between(up, -p.limit, p.limit) + p.offset);
  } else if constexpr (kKind == GROUPED_GEGLU) {
    return gate * sigmoid_for<kBits>(gelu_argument(gate).twice_u).value * up;
  } else {
    static_assert(kKind == GROUPED_SQUARED_RELU, "an activation needs its value here");
    const A r = gate < A(0) ? A(0) : gate;
    return r * r;
  }
}

template <int32_t kKind, int kBits, typename A>
GROUPED_HD ActivationGradient<A> activation_gradient(A gate, A up, const ActivationParams<A>& p) {
  if constexpr (kKind == GROUPED_SWIGLU) {
    const Sigmoid<A> s = sigmoid_for<kBits>(gate);
    const A silu = gate * s.value;
    return {silu * up, up * s.value * multiply_add(gate, s.complement, A(1)), silu};
  } else if constexpr (kKind == GROUPED_CLAMPED_SWIGLU) {
    const A g = gate > p.limit ? p.limit : gate;
    const A u = clamp_between(up, -p.limit, p.limit) + p.offset;
    // Beyond 1e4 the sigmoid is 0 or 1 in every format, and 0 times an overflow would be NaN.
    const A z = clamp_between(p.alpha * g, A(-1e4), A(1e4));
    const Sigmoid<A> s = sigmoid_for<kBits>(z);
    const A silu = g * s.value;
    const bool up_is_free = !(up > p.limit) && !(up < -p.limit);
    return {silu * u, gate > p.limit ? A(0) : u * s.value * multiply_add(z, s.complement, A(1)),
            up_is_free ? silu : A(0)};
  } else if constexpr (kKind == GROUPED_GEGLU) {
    const GeluArgument<A> a = gelu_argument(gate);
    const Sigmoid<A> s = sigmoid_for<kBits>(a.twice_u);
    const A gelu = gate * s.value;
    // Of the clamped gate: beyond, the complement or s.value is 0, and 0 times an overflow would be NaN.
    return {gelu * up, up * s.value * multiply_add(a.x * s.complement, a.twice_du, A(1)), gelu};
  } else {
    static_assert(kKind == GROUPED_SQUARED_RELU, "an activation needs its derivative here");
    const A r = gate < A(0) ? A(0) : gate;
    return {r * r, r + r, A(0)};
  }
}

}  // namespace grouped

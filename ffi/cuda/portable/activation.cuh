// SPDX-License-Identifier: Apache-2.0
// What the activation kernels share: how gate and up lie in a row of h, and the kernel of a kind.
#pragma once

#include "core/activation_math.h"
#include "portable/rowwise.cuh"

namespace grouped::cuda {

template <typename T>
ActivationParams<Accumulator<T>> activation_params(const ActivationProblem& p) {
  using A = Accumulator<T>;
  return {static_cast<A>(p.alpha), static_cast<A>(p.limit), static_cast<A>(p.offset)};
}

// A strip of features of a row of h, as it is stored. Concatenated rows are [gate | up].
template <int32_t kKind, typename T>
struct HiddenStrip {
  Strip<T> words[is_gated(kKind) ? 2 : 1];
};

// Features first.. of the row that begins at `row`, first < F; zeros past F.
template <int32_t kKind, typename T>
__device__ __forceinline__ HiddenStrip<kKind, T> read_hidden(const T* row, int64_t first, int64_t F,
                                                             bool interleaved, bool vectors) {
  if constexpr (!is_gated(kKind)) {
    return {{read_strip(row, first, F, vectors)}};
  } else if (interleaved) {
    return {
        {read_strip(row, 2 * first, 2 * F, vectors), read_strip(row, 2 * first + kStrip<T>, 2 * F, vectors)}};
  } else {
    return {{read_strip(row, first, F, vectors), read_strip(row + F, first, F, vectors)}};
  }
}

template <int32_t kKind, typename T>
__device__ __forceinline__ void split_hidden(Accumulator<T> (&gate)[kStrip<T>],
                                             Accumulator<T> (&up)[kStrip<T>], const HiddenStrip<kKind, T>& h,
                                             bool interleaved) {
  if constexpr (!is_gated(kKind)) {
    widen_strip<T>(gate, h.words[0]);
#pragma unroll
    for (int i = 0; i < kStrip<T>; ++i) up[i] = 0;
  } else if (interleaved) {
#pragma unroll
    for (int i = 0; i < kStrip<T>; ++i) {
      const Strip<T>& word = h.words[2 * i / kStrip<T>];
      gate[i] = widen(word.elements[2 * i % kStrip<T>]);
      up[i] = widen(word.elements[2 * i % kStrip<T> + 1]);
    }
  } else {
    widen_strip<T>(gate, h.words[0]);
    widen_strip<T>(up, h.words[1]);
  }
}

// Both at once. A branch for each layout, so that words are not moved to where the other would have them.
template <int32_t kKind, typename T>
__device__ __forceinline__ void load_gate_up(Accumulator<T> (&gate)[kStrip<T>],
                                             Accumulator<T> (&up)[kStrip<T>], const T* row, int64_t first,
                                             int64_t F, bool interleaved, bool vectors) {
  const auto load = [&](bool is_interleaved) {
    split_hidden<kKind>(gate, up, read_hidden<kKind>(row, first, F, is_interleaved, vectors), is_interleaved);
  };
  if (interleaved) {
    load(true);
  } else {
    load(false);
  }
}

template <int32_t kKind, typename T, int kCount>
__device__ __forceinline__ void store_gate_up(T* row, int64_t first, int64_t F,
                                              const Accumulator<T> (&gate)[kCount],
                                              const Accumulator<T> (&up)[kCount], bool interleaved,
                                              bool vectors) {
  if constexpr (!is_gated(kKind)) {
    store_strip<T>(row, first, F, gate, vectors);
  } else if (interleaved) {
    Accumulator<T> both[2 * kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      both[2 * i] = gate[i];
      both[2 * i + 1] = up[i];
    }
    store_strip<T>(row, 2 * first, 2 * F, both, vectors);
  } else {
    store_strip<T>(row, first, F, gate, vectors);
    store_strip<T>(row + F, first, F, up, vectors);
  }
}

// Calls f with the kind as a compile-time constant.
template <typename F>
Status with_kind(int32_t kind, F&& f) {
  switch (kind) {
    case GROUPED_SWIGLU:
      return f(std::integral_constant<int32_t, GROUPED_SWIGLU>());
    case GROUPED_CLAMPED_SWIGLU:
      return f(std::integral_constant<int32_t, GROUPED_CLAMPED_SWIGLU>());
    case GROUPED_GEGLU:
      return f(std::integral_constant<int32_t, GROUPED_GEGLU>());
    case GROUPED_SQUARED_RELU:
      return f(std::integral_constant<int32_t, GROUPED_SQUARED_RELU>());
    default:
      return Status(GROUPED_INTERNAL, "grouped_activation: the CUDA backend does not know activation kind " +
                                          std::to_string(kind) + ".");
  }
}

}  // namespace grouped::cuda

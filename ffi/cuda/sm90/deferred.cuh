// SPDX-License-Identifier: Apache-2.0
// A tile's 16-bit result that leaves while the next tile is multiplied. Where multipliers share every tile
// none would multiply while results leave; rounded, a result takes half of its accumulators' registers, and
// these are free for the next tile.
#pragma once

#include <type_traits>

#include "sm90/shape.cuh"

namespace grouped::cuda::sm90 {

template <typename Shape>
struct Deferred {
  static_assert(Shape::kHalves == 1, "the accumulators of both halves leave no registers");
  static_assert(Shape::kMaxWidth == 256, "four pieces");

  uint4 words[16];  // accumulators 8i to 8i + 7, two in each
  Tile tile;
  int next = 0, pieces = 0;  // to write

  // store(number, w0, w1, w2, w3): of the next piece. A case for each piece, because numbers of registers
  // cannot depend on it.
  template <typename Store>
  __device__ __forceinline__ void write(const Store& store) const {
    if (next == 0) {
      store(std::integral_constant<int, 0>(), words[0], words[1], words[2], words[3]);
    } else if (next == 1) {
      store(std::integral_constant<int, 1>(), words[4], words[5], words[6], words[7]);
    } else if (next == 2) {
      store(std::integral_constant<int, 2>(), words[8], words[9], words[10], words[11]);
    } else {
      store(std::integral_constant<int, 3>(), words[12], words[13], words[14], words[15]);
    }
  }
};
template <typename Shape, bool kDefers>
struct LaterOf {
  struct Type {};
};
template <typename Shape>
struct LaterOf<Shape, true> {
  using Type = Deferred<Shape>;
};

}  // namespace grouped::cuda::sm90

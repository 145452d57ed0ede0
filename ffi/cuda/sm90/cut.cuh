// SPDX-License-Identifier: Apache-2.0
// How a group's rows, or a weight gradient's columns, are cut into tiles.
#pragma once

#include <cstdint>

namespace grouped::cuda::sm90 {

// Widths are multiples of kStep.
template <int kMaxWidth, int kStep>
struct WidthCut {
  int32_t tiles, width;  // of the widest tile

  // Even cuts: as few tiles as can be, whose widths differ by one step at most. Else, from two tiles on, all
  // of kMaxWidth.
  __device__ __forceinline__ WidthCut(int32_t count, bool is_even) {
    tiles = (count + kMaxWidth - 1) / kMaxWidth;
    if (!is_even && tiles > 1) {
      steps_ = kMaxWidth / kStep;
      longer_ = 0;
    } else {
      const int32_t steps = (count + kStep - 1) / kStep;
      steps_ = tiles == 0 ? 0 : steps / tiles;
      longer_ = steps - steps_ * tiles;
    }
    width = width_of(0);
  }
  __device__ __forceinline__ int32_t width_of(int32_t tile) const {
    return tile >= tiles ? 0 : (steps_ + (tile < longer_ ? 1 : 0)) * kStep;
  }
  __device__ __forceinline__ int32_t first_of(int32_t tile) const {
    return (tile * steps_ + min(tile, longer_)) * kStep;
  }

 private:
  int32_t steps_;   // the width of a tile, in steps,
  int32_t longer_;  // and of the first so many tiles one more
};

}  // namespace grouped::cuda::sm90

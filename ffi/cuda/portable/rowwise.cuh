// SPDX-License-Identifier: Apache-2.0
// What the row-wise kernels share: one warp a row or a piece of it, its lanes on strips of 8 elements (fp32:
// 4, fp64: 2) in turn. A sum along a row is 32 partial sums in strip order, then a fixed shuffle tree: no
// grid size or alignment enters it.
#pragma once

#include "common/group_sizes.cuh"
#include "common/launch.h"
#include "common/vector.cuh"
#include "portable/kernels.h"
#include "portable/schedule.cuh"

namespace grouped::cuda {

inline constexpr int kRowThreads = 256;
inline constexpr int kRowsPerBlock = kRowThreads / 32;

inline constexpr int kRowBlocksPerSm = 6;  // 40 registers a thread

// How rows are divided into what a warp takes at once. Neighbouring warps take neighbouring pieces, because
// memory likes to be read in one place; where there is a sum along a row, that is the whole of it.
struct RowPieces {
  int64_t length;  // elements of one
  int32_t count;   // of a row, at least 1

  template <typename T>
  static RowPieces strips(int64_t row_length) {
    constexpr int64_t kLength = 32 * kStrip<T>;
    return {kLength, static_cast<int32_t>(std::max<int64_t>(1, ceil_div(row_length, kLength)))};
  }
  GROUPED_HD static RowPieces whole(int64_t row_length) { return {row_length, 1}; }
};

// As many blocks as run at once, which a kernel's __launch_bounds__ promise: a second wave would leave most
// of the machine empty.
inline unsigned int row_grid(int64_t rows, const RowPieces& pieces, int blocks_per_sm, int device) {
  return strided_grid(ceil_div(saturating_product(rows, pieces.count), kRowsPerBlock), blocks_per_sm, device);
}

// The pieces of one warp: every so many-th of the grid.
class RowWalk {
 public:
  __device__ __forceinline__ explicit RowWalk(const RowPieces& pieces) : count_(pieces.count) {
    const int32_t warp = static_cast<int32_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / 32;
    const int32_t warps = static_cast<int32_t>(gridDim.x) * kRowsPerBlock;
    row = warp / count_;
    piece = warp % count_;
    rows_ = warps / count_;
    rest_ = warps % count_;
  }
  __device__ __forceinline__ void advance() {
    row += rows_;
    piece += rest_;
    if (piece >= count_) {
      piece -= count_;
      ++row;
    }
  }
  int64_t row;
  int32_t piece;

 private:
  int32_t count_, rows_, rest_;
};

// The sum of `value` over the warp, on every lane.
template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = add(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

// Whether rows of `length` elements of T may be read in 16-byte words.
template <typename T>
bool rows_take_vectors(const void* data, int64_t length) {
  return length % kStrip<T> == 0 && is_aligned(data, 16);
}
template <typename T>
bool rows_take_vectors(const void* data, bool is_wide, int64_t length) {
  return is_wide ? rows_take_vectors<Accumulator<T>>(data, length) : rows_take_vectors<T>(data, length);
}

}  // namespace grouped::cuda

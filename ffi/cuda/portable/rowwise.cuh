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
inline constexpr int kRowWarps = kRowThreads / 32;

inline constexpr int kRowBlocksPerSm = 6;  // 40 registers a thread

// Elements of a row that a warp takes at once: a strip for each lane.
template <typename T>
inline constexpr int kRowPiece = 32 * kStrip<T>;

// Which pieces of which rows a warp takes. Neighbouring warps take neighbouring pieces, because memory likes
// to be read in one place; where there is a sum along a row, one warp takes all of it.
struct RowPieces {
  int32_t count;  // of a row, at least 1
  bool whole_rows;

  template <typename T>
  static RowPieces of(int64_t row_length, bool whole_rows) {
    return {static_cast<int32_t>(std::max<int64_t>(1, ceil_div(row_length, kRowPiece<T>))), whole_rows};
  }
};

// As many blocks as run at once, which a kernel's __launch_bounds__ promise: a second wave would leave most
// of the machine empty.
inline unsigned int row_grid(int64_t rows, const RowPieces& pieces, int blocks_per_sm, int device) {
  const int64_t warps = pieces.whole_rows ? rows : saturating_product(rows, pieces.count);
  return strided_grid(ceil_div(warps, kRowWarps), blocks_per_sm, device);
}

// The pieces of one warp, in turn.
class RowWalk {
 public:
  __device__ __forceinline__ explicit RowWalk(const RowPieces& pieces) : count_(pieces.count) {
    const int32_t warp = static_cast<int32_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32;
    const int32_t warps = static_cast<int32_t>(gridDim.x) * kRowWarps;
    row = pieces.whole_rows ? warp : warp / count_;
    piece = pieces.whole_rows ? 0 : warp % count_;
    rows_ = pieces.whole_rows ? 0 : warps / count_;
    pieces_ = pieces.whole_rows ? 1 : warps % count_;
    rows_at_end_ = pieces.whole_rows ? warps : 1;
  }
  __device__ __forceinline__ void advance() {
    row += rows_;
    piece += pieces_;
    if (piece >= count_) {
      piece -= count_;
      row += rows_at_end_;
    }
  }
  // The first element of this thread's strip.
  template <typename T>
  __device__ __forceinline__ int64_t first() const {
    return piece * static_cast<int64_t>(kRowPiece<T>) + threadIdx.x % 32 * kStrip<T>;
  }

  int64_t row;
  int32_t piece;

 private:
  int32_t count_, rows_, pieces_, rows_at_end_;
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

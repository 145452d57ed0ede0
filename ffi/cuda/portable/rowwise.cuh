// SPDX-License-Identifier: Apache-2.0
// What the row-wise kernels share: one warp a row, its lanes on strips of 8 elements (fp32: 4, fp64: 2) in
// turn. A sum along a row is 32 partial sums in strip order, then a fixed shuffle tree: no grid size or
// alignment enters it.
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

// As many blocks as run at once, which a kernel's __launch_bounds__ promise: a second wave would leave most
// of the machine empty.
inline unsigned int row_grid(int64_t rows, int blocks_per_sm, int device) {
  return strided_grid(ceil_div(rows, kRowsPerBlock), blocks_per_sm, device);
}

// The sum of `value` over the warp, on every lane.
template <typename A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = add(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}

__device__ __forceinline__ int64_t first_row_of_warp() {
  return blockIdx.x * static_cast<int64_t>(kRowsPerBlock) + threadIdx.x / 32;
}
__device__ __forceinline__ int64_t row_stride_of_grid() {
  return gridDim.x * static_cast<int64_t>(kRowsPerBlock);
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

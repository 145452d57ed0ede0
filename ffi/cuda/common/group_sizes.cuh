// SPDX-License-Identifier: Apache-2.0
// Group sizes as they are given, read inside a kernel.
#pragma once

#include "core/offsets.h"
#include "core/problem.h"

namespace grouped::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ int64_t size_at(const GroupSizes& sizes, int64_t g) {
  return sizes.is_64bit ? static_cast<const int64_t*>(sizes.data)[g]
                        : static_cast<const int32_t*>(sizes.data)[g];
}

// Where the last group ends: S. By all lanes of a warp; clamped values make the running sum and the running
// maximum associative (core/offsets.h).
__device__ __forceinline__ int64_t last_row(const GroupSizes& sizes) {
  int64_t rows = 0;
  for (int64_t g = threadIdx.x % 32; g < sizes.count; g += 32)
    rows = next_offset(rows, size_at(sizes, g), sizes.are_ends, sizes.rows);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    rows = next_offset(rows, __shfl_xor_sync(kAllLanes, rows, distance), sizes.are_ends, sizes.rows);
  return rows;
}

}  // namespace grouped::cuda

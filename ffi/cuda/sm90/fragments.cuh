// SPDX-License-Identifier: Apache-2.0
// From a warp's accumulators to lines of shared memory.
#pragma once

#include "sm90/pack.cuh"
#include "sm90/ptx.cuh"

namespace grouped::cuda::sm90 {

// A warp has 16 rows of a wgmma's 64, and of each block of 8 columns a lane has two neighbouring ones in rows
// lane / 4 and 8 below. Writes kBlocks blocks as fp32 or rounded to T: value(block, lower) are this lane's
// two, at(row, unit) is where 16 bytes of a row go.
template <typename T, bool kWide, int kBlocks, typename Value, typename Place>
__device__ __forceinline__ void write_fragments(const Value& value, const Place& at) {
  const int lane = threadIdx.x % 32;
  if constexpr (kWide) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int lower = 0; lower < 2; ++lower) {
        store_shared_8(at(lane / 4 + lower * 8, block * 2 + lane % 4 / 2) + lane % 2 * 8,
                       value(block, lower));
      }
    }
  } else {
#pragma unroll
    for (int block = 0; block < kBlocks; block += 2) {
      uint32_t m[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) m[i] = packed<T>(value(block + i / 2, i % 2));
      stmatrix_x4(at(lane % 16, block + lane / 16), m[0], m[1], m[2], m[3]);
    }
  }
}

}  // namespace grouped::cuda::sm90

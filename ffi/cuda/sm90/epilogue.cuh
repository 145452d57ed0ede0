// SPDX-License-Identifier: Apache-2.0
// From accumulators to the result: 64 rows of one multiplier, 128 bytes of columns at a time, through two
// swizzled panels of shared memory, so that a panel is written while the copy engine still reads the other.
#pragma once

#include "common/pair.cuh"
#include "sm90/block.cuh"

namespace grouped::cuda::sm90 {

// Where this thread's part of the accumulators lies: acc[j * 4 + half * 2] is column(j) of row(half), and
// acc[j * 4 + half * 2 + 1] its right neighbour.
struct Place {
  int first_row, first_column;
  __device__ __forceinline__ Place() {
    first_row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    first_column = threadIdx.x % 4 * 2;
  }
  __device__ __forceinline__ int row(int half) const { return first_row + half * 8; }
  __device__ __forceinline__ int column(int j) const { return first_column + j * 8; }
};

// Byte offset of 16-byte unit `unit` of line `line` in a panel.
__device__ __forceinline__ uint32_t panel_offset(int line, int unit) {
  return line * kLineBytes + ((unit ^ (line & 7)) << 4);
}

template <typename T>
__device__ __forceinline__ uint32_t packed(float2 v) {
  const auto pair = narrow_pair(T(), v.x, v.y);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <typename T>
__device__ __forceinline__ float2 unpacked(uint32_t v) {
  return widen_pair(*reinterpret_cast<const decltype(narrow_pair(T(), 0.0f, 0.0f))*>(&v));
}

// `Ending`: prepare<kCount>(j) fetches what columns 8 j .. 8 (j + kCount) need; value(j, jj, half, v) ends
// the arithmetic of a pair in column block j + jj; write(panel, column, ...) takes a finished panel away.
// kWide: fp32 results. `num_columns` of the tile exist.
template <typename T, bool kWide, int kColumns, typename Ending>
__device__ __forceinline__ void write_panels(const float (&acc)[kColumns / 2], int num_columns, int index,
                                             uint32_t staging, Ending& ending) {
  constexpr int kCount = kWide ? 4 : 8;  // blocks of 8 columns in a panel
  const Place place;
  const int thread = threadIdx.x % 128;
  const int lane = thread % 32;
#pragma unroll
  for (int j = 0; j < kColumns / 8; j += kCount) {
    // Panels alternate, so before this one is written all but the newest copy must have read theirs. A
    // commit for each panel, used or not, keeps that count.
    const uint32_t panel = staging + (j / kCount % 2) * kPanelBytes;
    if (j * 8 < num_columns) {
      ending.template prepare<kCount>(j);
      if (thread == 0) store_wait_read<1>();
      named_barrier<128>(1 + index);
      if constexpr (kWide) {
#pragma unroll
        for (int jj = 0; jj < kCount; ++jj) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const float2 v =
                ending.value(jj, half, {acc[(j + jj) * 4 + half * 2], acc[(j + jj) * 4 + half * 2 + 1]});
            store_shared_8(panel + panel_offset(place.row(half), jj * 2 + lane % 4 / 2) + lane % 2 * 8, v);
          }
        }
      } else {
        const int line = thread / 32 * 16 + lane % 16;
#pragma unroll
        for (int jj = 0; jj < kCount; jj += 2) {
          uint32_t m[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int at = (j + jj + i / 2) * 4 + i % 2 * 2;
            m[i] = packed<T>(ending.value(jj + i / 2, i % 2, {acc[at], acc[at + 1]}));
          }
          stmatrix_x4(panel + panel_offset(line, jj + lane / 16), m[0], m[1], m[2], m[3]);
        }
      }
      async_proxy_fence();
      named_barrier<128>(1 + index);
      ending.write(panel, j * 8);
    }
    if (thread == 0) store_commit();
  }
}

}  // namespace grouped::cuda::sm90

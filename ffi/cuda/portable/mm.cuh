// SPDX-License-Identifier: Apache-2.0
// What both grouped_mm kernels are given, and the arithmetic that ends them.
#pragma once

#include "common/convert.cuh"
#include "common/launch.h"
#include "common/vector.cuh"
#include "portable/schedule.cuh"

namespace grouped::cuda {

template <typename T>
struct MmParams {
  const T* x;                      // [rows, K]
  const T* weight;                 // [G, N, K] or [G, K, N]
  EitherInput<T> bias, row_scale;  // [G, N], [rows]; data may be null
  EitherOutput<T> out;             // [rows, N]
  int64_t rows, K, N;
  RowMap map;
  bool zero_tail;
  bool pairs;  // out takes pairs of columns in one store
};

template <typename T>
MmParams<T> mm_params(const MmProblem& p, const RowMap& map) {
  return {static_cast<const T*>(p.x),
          static_cast<const T*>(p.weight),
          either_input<T>(p.bias, p.bias_dtype),
          either_input<T>(p.row_scale, p.scale_dtype),
          either_output<T>(p.out, p.out_dtype),
          p.T,
          p.K,
          p.N,
          map,
          p.zero_tail,
          false};
}

// Blocks for `tile` x `tile` tiles. The host does not know the sizes: it counts a partial row tile a group.
inline unsigned int mm_grid(const MmProblem& p, int tile, int blocks_per_sm, int device) {
  const int64_t row_tiles = ceil_div(p.T, tile) + p.G;
  return strided_grid(saturating_product(row_tiles, ceil_div(p.N, tile)), blocks_per_sm, device);
}

// One output tile: rows `row`.. of group `group`, `num_rows` of them at most, columns `column`...
struct MmTile {
  int64_t group, row, num_rows, column;
};

__device__ __forceinline__ MmTile mm_tile(const RowMap& map, int64_t id, int64_t row_tiles,
                                          int64_t column_tiles, int tile_size) {
  const TileIndex index = banded_tile(id, row_tiles, column_tiles);
  MmTile tile;
  tile.group = find_group(map.row_tiles, map.G, index.row);
  tile.row = map.offsets[tile.group] + (index.row - map.row_tiles[tile.group]) * tile_size;
  tile.num_rows = map.offsets[tile.group + 1] - tile.row;
  tile.column = index.column * tile_size;
  return tile;
}

// (acc + bias) * scale, each step rounded to the accumulator's precision.
template <typename A>
__device__ __forceinline__ A mm_finish(A acc, bool has_bias, A bias, bool has_scale, A scale) {
  if (has_bias) acc = add(acc, bias);
  if (has_scale) acc = multiply(acc, scale);
  return acc;
}

// Rows `S`.. of out become zeros; shared among `threads` threads, of which this is number `thread`.
template <typename T>
__device__ __forceinline__ void mm_zero_tail(const MmParams<T>& p, int64_t S, int64_t thread,
                                             int64_t threads) {
  const int64_t row_bytes = p.N * static_cast<int64_t>(p.out.is_wide ? sizeof(Accumulator<T>) : sizeof(T));
  char* out = static_cast<char*>(p.out.data);
  zero_bytes(out + S * row_bytes, out + p.rows * row_bytes, thread, threads);
}

// The same where it is asked for, shared among all threads of the grid.
template <typename T>
__device__ __forceinline__ void mm_zero_tail(const MmParams<T>& p) {
  if (!p.zero_tail) return;
  mm_zero_tail(p, p.map.offsets[p.map.G], blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x,
               gridDim.x * static_cast<int64_t>(blockDim.x));
}

}  // namespace grouped::cuda

// SPDX-License-Identifier: Apache-2.0
// What both grouped_wgrad kernels are given. The result is a [rows, columns] matrix a group: x^T dy in
// [G,K,N] storage, dy^T x in [G,N,K]. One kernel serves both, because the two differ in which operand is
// called which, and a product does not care.
#pragma once

#include "common/convert.cuh"
#include "common/launch.h"
#include "portable/schedule.cuh"

namespace grouped::cuda {

template <typename T>
struct WgradParams {
  const T* left;        // [T, rows]
  const T* right;       // [T, columns]
  EitherOutput<T> out;  // [G, rows, columns]
  int64_t rows, columns;
  RowMap map;
  bool accumulate;
  bool pairs;  // out takes pairs of columns in one access
};

template <typename T>
WgradParams<T> wgrad_params(const WgradProblem& p, const RowMap& map) {
  const T* x = static_cast<const T*>(p.x);
  const T* dy = static_cast<const T*>(p.dy);
  const EitherOutput<T> out = either_output<T>(p.out, p.out_dtype);
  if (p.out_is_gkn) return {x, dy, out, p.K, p.N, map, p.accumulate, false};
  return {dy, x, out, p.N, p.K, map, p.accumulate, false};
}

inline unsigned int wgrad_grid(const WgradProblem& p, int tile, int blocks_per_sm, int device) {
  const int64_t tiles = saturating_product(ceil_div(p.K, tile), ceil_div(p.N, tile));
  return strided_grid(saturating_product(tiles, p.G), blocks_per_sm, device);
}

struct WgradTile {
  int64_t group, row, column;       // of the result
  int64_t first_token, num_tokens;  // the reduction: the rows of the group
};

__device__ __forceinline__ WgradTile wgrad_tile(const RowMap& map, int64_t id, int64_t row_tiles,
                                                int64_t column_tiles, int tile_size) {
  WgradTile tile;
  tile.group = id / (row_tiles * column_tiles);
  const TileIndex index = banded_tile(id - tile.group * row_tiles * column_tiles, row_tiles, column_tiles);
  tile.row = index.row * tile_size;
  tile.column = index.column * tile_size;
  tile.first_token = map.offsets[tile.group];
  tile.num_tokens = map.offsets[tile.group + 1] - tile.first_token;
  return tile;
}

}  // namespace grouped::cuda

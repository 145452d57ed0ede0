// SPDX-License-Identifier: Apache-2.0
// out[g] (+)= left_g^T right_g in fp32 or fp64 throughout, each element one fma chain from the group's first
// row on. A persistent grid walks square tiles of all groups' results.
#include "portable/kernels.h"
#include "portable/tile_simt.cuh"
#include "portable/wgrad.cuh"

namespace grouped::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(kSimtThreads, 2)
    wgrad_simt_kernel(const __grid_constant__ WgradParams<T> p) {
  constexpr int kTileSize = kSimtTile<T>;
  __shared__ SimtShared<T> shared;

  const int64_t row_tiles = (p.rows + kTileSize - 1) / kTileSize;
  const int64_t column_tiles = (p.columns + kTileSize - 1) / kTileSize;
  const int64_t num_tiles = p.map.G * row_tiles * column_tiles;
  for (int64_t id = blockIdx.x; id < num_tiles; id += gridDim.x) {
    const WgradTile tile = wgrad_tile(p.map, id, row_tiles, column_tiles, kTileSize);
    if (p.accumulate && tile.num_tokens == 0) continue;  // unchanged to the bit, -0 too
    const int64_t rows = p.rows - tile.row;
    const int64_t columns = p.columns - tile.column;
    const SimtLoader<T, Major::kOuter> left(p.left + tile.first_token * p.rows + tile.row, p.rows, rows);
    const SimtLoader<T, Major::kOuter> right(p.right + tile.first_token * p.columns + tile.column, p.columns,
                                             columns);
    SimtAccumulator<T> acc;
    multiply_tile_simt<T>(shared, left, right, tile.num_tokens, acc);

    T* out = static_cast<T*>(p.out.data) + (tile.group * p.rows + tile.row) * p.columns + tile.column;
#pragma unroll
    for (int i = 0; i < kSimtThreadTile<T>; ++i) {
      const int row = simt_place<T>(threadIdx.x / 16, i);
      if (row >= rows) continue;
#pragma unroll
      for (int j = 0; j < kSimtThreadTile<T>; ++j) {
        const int column = simt_place<T>(threadIdx.x % 16, j);
        if (column >= columns) continue;
        T& target = out[row * p.columns + column];
        target = p.accumulate ? add(target, acc[i][j]) : acc[i][j];
      }
    }
  }
}

template <typename T>
Status wgrad_simt(const WgradProblem& p, const Launch& launch) {
  RowMap map;
  const Status mapped = make_row_map(p.sizes, kSimtTile<T>, launch, &map);
  if (!mapped.ok()) return mapped;
  return launch_kernel(wgrad_simt_kernel<T>, wgrad_grid(p, kSimtTile<T>, 2, launch.device),
                       dim3(kSimtThreads), 0, launch, wgrad_params<T>(p, map));
}

}  // namespace

Status wgrad_f32(const WgradProblem& p, const Launch& launch) { return wgrad_simt<float>(p, launch); }
Status wgrad_f64(const WgradProblem& p, const Launch& launch) { return wgrad_simt<double>(p, launch); }

}  // namespace grouped::cuda

// SPDX-License-Identifier: Apache-2.0
// out[t] = (x[t] @ W[g] + bias[g]) * row_scale[t] in fp32 or fp64 throughout.
// A persistent grid walks square tiles of out; a tile's rows belong to one group.
#include "portable/kernels.h"
#include "portable/mm.cuh"
#include "portable/tile_simt.cuh"

namespace grouped::cuda {
namespace {

// kWeight: kReduction reads [G,N,K], kOuter reads [G,K,N].
template <typename T, Major kWeight>
__global__ void __launch_bounds__(kSimtThreads, 2) mm_simt_kernel(const __grid_constant__ MmParams<T> p) {
  constexpr int kTileSize = kSimtTile<T>;
  __shared__ SimtShared<T> shared;

  mm_zero_tail(p);
  const int64_t row_tiles = p.map.row_tiles[p.map.G];
  const int64_t column_tiles = (p.N + kTileSize - 1) / kTileSize;
  for (int64_t id = blockIdx.x; id < row_tiles * column_tiles; id += gridDim.x) {
    const MmTile tile = mm_tile(p.map, id, row_tiles, column_tiles, kTileSize);
    const T* group_weight = p.weight + tile.group * p.N * p.K;
    const int64_t columns = p.N - tile.column;
    const SimtLoader<T, Major::kReduction> x(p.x + tile.row * p.K, p.K, tile.num_rows);
    const SimtLoader<T, kWeight> weight(
        group_weight + (kWeight == Major::kReduction ? tile.column * p.K : tile.column),
        kWeight == Major::kReduction ? p.K : p.N, columns);
    SimtAccumulator<T> acc;
    multiply_tile_simt<T>(shared, x, weight, p.K, acc);

    const bool has_bias = p.bias.data != nullptr;
    const bool has_scale = p.row_scale.data != nullptr;
    T* out = static_cast<T*>(p.out.data);
#pragma unroll
    for (int i = 0; i < kSimtThreadTile<T>; ++i) {
      const int row = simt_place<T>(threadIdx.x / 16, i);
      if (row >= tile.num_rows) continue;
      const T scale = has_scale ? static_cast<const T*>(p.row_scale.data)[tile.row + row] : T(1);
#pragma unroll
      for (int j = 0; j < kSimtThreadTile<T>; ++j) {
        const int column = simt_place<T>(threadIdx.x % 16, j);
        if (column >= columns) continue;
        const T bias =
            has_bias ? static_cast<const T*>(p.bias.data)[tile.group * p.N + tile.column + column] : T(0);
        out[(tile.row + row) * p.N + tile.column + column] =
            mm_finish(acc[i][j], has_bias, bias, has_scale, scale);
      }
    }
  }
}

template <typename T>
Status mm_simt(const MmProblem& p, const Launch& launch) {
  RowMap map;
  const Status mapped = make_row_map(p.sizes, kSimtTile<T>, launch, &map);
  if (!mapped.ok()) return mapped;
  const auto kernel =
      p.weight_is_gkn ? mm_simt_kernel<T, Major::kOuter> : mm_simt_kernel<T, Major::kReduction>;
  return launch_kernel(kernel, mm_grid(p, kSimtTile<T>, 2, launch.device), dim3(kSimtThreads), 0, launch,
                       mm_params<T>(p, map));
}

}  // namespace

Status mm_f32(const MmProblem& p, const Launch& launch) { return mm_simt<float>(p, launch); }
Status mm_f64(const MmProblem& p, const Launch& launch) { return mm_simt<double>(p, launch); }

}  // namespace grouped::cuda

// SPDX-License-Identifier: Apache-2.0
// out[g] (+)= left_g^T right_g for 16-bit operands on tensor cores, summed in fp32 from the group's first row
// on. A persistent grid walks 128 x 128 tiles of all groups' results.
#pragma once

#include "common/pair.cuh"
#include "portable/kernels.h"
#include "portable/tile_mma.cuh"
#include "portable/wgrad.cuh"

namespace grouped::cuda {

// kAligned: rows of both operands are whole 16-byte chunks.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kMmaThreads, kMmaBlocksPerSm)
    wgrad_mma_kernel(const __grid_constant__ WgradParams<T> p) {
  static_assert(sizeof(T) == 2, "mma.m16n8k16 takes 16-bit elements; wider ones are served by wgrad_simt");
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);

  const int64_t row_tiles = (p.rows + kTile - 1) / kTile;
  const int64_t column_tiles = (p.columns + kTile - 1) / kTile;
  const int64_t num_tiles = p.map.G * row_tiles * column_tiles;
  for (int64_t id = blockIdx.x; id < num_tiles; id += gridDim.x) {
    const WgradTile tile = wgrad_tile(p.map, id, row_tiles, column_tiles, kTile);
    if (p.accumulate && tile.num_tokens == 0) continue;  // unchanged to the bit, -0 too
    const OperandLoader<Major::kOuter, kAligned> left(p.left + tile.first_token * p.rows + tile.row, p.rows,
                                                      p.rows - tile.row, tile.num_tokens);
    const OperandLoader<Major::kOuter, kAligned> right(p.right + tile.first_token * p.columns + tile.column,
                                                       p.columns, p.columns - tile.column, tile.num_tokens);

    MmaAccumulator acc;
    __syncthreads();  // the tile before may still be read
    multiply_tile<T>(shared, left, right, tile.num_tokens, acc);

    const MmaPlace place;
    const int64_t rows = p.rows - tile.row;
    const int64_t columns = p.columns - tile.column;
#pragma unroll
    for (int i = 0; i < kWarpTile / 16; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = place.row(i, half);
        if (row >= rows) continue;
        const int64_t out_row = (tile.group * p.rows + tile.row + row) * p.columns + tile.column;
#pragma unroll
        for (int j = 0; j < kWarpTile / 8; ++j) {
          const int column = place.column(j);
          if (column >= columns) continue;
          const bool second = column + 1 < columns;
          float2 v = {acc[i][j][half * 2], acc[i][j][half * 2 + 1]};
          if (p.accumulate) {
            const float2 old = load_pair(p.out, out_row + column, p.pairs, second);
            v = {add(old.x, v.x), add(old.y, v.y)};
          }
          store_pair(p.out, out_row + column, v, p.pairs, second);
        }
      }
    }
  }
}

template <typename T, bool kAligned>
Status launch_wgrad_mma(const WgradProblem& p, const WgradParams<T>& params, const Launch& launch) {
  static std::atomic<uint64_t> shared_memory_allowed{0};
  const auto kernel = wgrad_mma_kernel<T, kAligned>;
  const Status allowed = allow_shared_memory(kernel, kMmaSharedBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  return launch_kernel(kernel, wgrad_grid(p, kTile, kMmaBlocksPerSm, launch.device), dim3(kMmaThreads),
                       kMmaSharedBytes, launch, params);
}

template <typename T>
Status wgrad_mma(const WgradProblem& p, const Launch& launch) {
  RowMap map;
  const Status mapped = make_row_map(p.sizes, kTile, launch, &map);
  if (!mapped.ok()) return mapped;
  WgradParams<T> params = wgrad_params<T>(p, map);
  params.pairs = pairs_are_aligned(params.out, params.columns);
  const bool aligned = p.K % kChunk == 0 && p.N % kChunk == 0 && is_aligned(p.x, 16) && is_aligned(p.dy, 16);
  return aligned ? launch_wgrad_mma<T, true>(p, params, launch)
                 : launch_wgrad_mma<T, false>(p, params, launch);
}

}  // namespace grouped::cuda

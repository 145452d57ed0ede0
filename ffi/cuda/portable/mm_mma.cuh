// SPDX-License-Identifier: Apache-2.0
// out[t] = round((x[t] @ W[g] + bias[g]) * row_scale[t]) for 16-bit x and W on tensor cores, summed in fp32.
// A persistent grid walks 128 x 128 tiles of out; a tile's rows belong to one group.
#pragma once

#include "common/pair.cuh"
#include "portable/kernels.h"
#include "portable/mm.cuh"
#include "portable/tile_mma.cuh"

namespace grouped::cuda {

// kWeight: kReduction reads [G,N,K], kOuter reads [G,K,N].
// kAligned: rows of x and W are whole 16-byte chunks.
template <typename T, Major kWeight, bool kAligned>
__global__ void __launch_bounds__(kMmaThreads, kMmaBlocksPerSm)
    mm_mma_kernel(const __grid_constant__ MmParams<T> p) {
  static_assert(sizeof(T) == 2, "mma.m16n8k16 takes 16-bit elements; wider ones are served by mm_simt");
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  const uint32_t shared = shared_address(shared_memory);

  mm_zero_tail(p);
  const int64_t row_tiles = p.map.row_tiles[p.map.G];
  const int64_t column_tiles = (p.N + kTile - 1) / kTile;
  for (int64_t id = blockIdx.x; id < row_tiles * column_tiles; id += gridDim.x) {
    const MmTile tile = mm_tile(p.map, id, row_tiles, column_tiles, kTile);
    const T* group_weight = p.weight + tile.group * p.N * p.K;
    const OperandLoader<Major::kReduction, kAligned> x(p.x + tile.row * p.K, p.K, tile.num_rows, p.K);
    const OperandLoader<kWeight, kAligned> weight(
        group_weight + (kWeight == Major::kReduction ? tile.column * p.K : tile.column),
        kWeight == Major::kReduction ? p.K : p.N, p.N - tile.column, p.K);

    MmaAccumulator acc;
    __syncthreads();  // the tile before may still be read
    multiply_tile<T>(shared, x, weight, p.K, acc);

    const MmaPlace place;
    const bool has_bias = p.bias.data != nullptr;
    const bool has_scale = p.row_scale.data != nullptr;
    const int64_t columns = p.N - tile.column;
    float2 bias[kWarpTile / 8];
#pragma unroll
    for (int j = 0; j < kWarpTile / 8; ++j) {
      const int column = place.column(j);
      const int64_t at = tile.group * p.N + tile.column + column;
      bias[j].x = has_bias && column < columns ? p.bias[at] : 0.0f;
      bias[j].y = has_bias && column + 1 < columns ? p.bias[at + 1] : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kWarpTile / 16; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = place.row(i, half);
        if (row >= tile.num_rows) continue;
        const float scale = has_scale ? p.row_scale[tile.row + row] : 1.0f;
        const int64_t out_row = (tile.row + row) * p.N + tile.column;
#pragma unroll
        for (int j = 0; j < kWarpTile / 8; ++j) {
          const int column = place.column(j);
          if (column >= columns) continue;
          const float2 v = {mm_finish(acc[i][j][half * 2], has_bias, bias[j].x, has_scale, scale),
                            mm_finish(acc[i][j][half * 2 + 1], has_bias, bias[j].y, has_scale, scale)};
          store_pair(p.out, out_row + column, v, p.pairs, column + 1 < columns);
        }
      }
    }
  }
}

template <typename T, Major kWeight, bool kAligned>
Status launch_mm_mma(const MmProblem& p, const MmParams<T>& params, const Launch& launch) {
  static std::atomic<uint64_t> shared_memory_allowed{0};
  const auto kernel = mm_mma_kernel<T, kWeight, kAligned>;
  const Status allowed = allow_shared_memory(kernel, kMmaSharedBytes, launch.device, shared_memory_allowed);
  if (!allowed.ok()) return allowed;
  return launch_kernel(kernel, mm_grid(p, kTile, kMmaBlocksPerSm, launch.device), dim3(kMmaThreads),
                       kMmaSharedBytes, launch, params);
}

template <typename T>
Status mm_mma(const MmProblem& p, const Launch& launch) {
  RowMap map;
  const Status mapped = make_row_map(p.sizes, kTile, launch, &map);
  if (!mapped.ok()) return mapped;
  MmParams<T> params = mm_params<T>(p, map);
  params.pairs = pairs_are_aligned(params.out, p.N);
  const int64_t weight_row = p.weight_is_gkn ? p.N : p.K;
  const bool aligned =
      p.K % kChunk == 0 && weight_row % kChunk == 0 && is_aligned(p.x, 16) && is_aligned(p.weight, 16);
  if (p.weight_is_gkn) {
    return aligned ? launch_mm_mma<T, Major::kOuter, true>(p, params, launch)
                   : launch_mm_mma<T, Major::kOuter, false>(p, params, launch);
  }
  return aligned ? launch_mm_mma<T, Major::kReduction, true>(p, params, launch)
                 : launch_mm_mma<T, Major::kReduction, false>(p, params, launch);
}

}  // namespace grouped::cuda

// SPDX-License-Identifier: Apache-2.0
// Which tile of the output a block works on next. Tile ids are 64-bit and walked with a grid stride, so no
// grid limit bounds a problem; the order decides speed alone, never a bit of a result.
#pragma once

#include "portable/offsets.h"

namespace grouped::cuda {

struct TileIndex {
  int64_t row, column;
};

// Walks kBand rows of tiles down before one column right: blocks that run together then share few rows of
// both operands in L2.
__device__ __forceinline__ TileIndex banded_tile(int64_t tile, int64_t rows, int64_t columns) {
  constexpr int64_t kBand = 8;
  const int64_t band = tile / (kBand * columns);
  const int64_t in_band = tile - band * kBand * columns;
  const int64_t rest = rows - band * kBand;
  const int64_t height = rest < kBand ? rest : kBand;
  return {band * kBand + in_band % height, in_band / height};
}

// The last g with starts[g] <= position, that is the group that holds `position` (an empty group holds none).
// Needs starts[0] = 0 <= position < starts[G]. All 32 lanes must call it with the same arguments.
__device__ __forceinline__ int64_t find_group(const int64_t* starts, int64_t G, int64_t position) {
  const int lane = threadIdx.x % 32;
  int64_t low = 0;
  int64_t high = G;
  while (high - low > 1) {
    const int64_t step = (high - low + 31) / 32;
    const int64_t probe = low + lane * step;
    const bool begun = probe < high && starts[probe] <= position;
    const int passed = __popc(__ballot_sync(0xffffffffu, begun));  // >= 1: lane 0 probes `low`
    low += (passed - 1) * step;
    high = low + step < high ? low + step : high;
  }
  return low;
}

}  // namespace grouped::cuda

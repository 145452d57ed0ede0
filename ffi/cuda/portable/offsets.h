// SPDX-License-Identifier: Apache-2.0
// Group sizes to row offsets on the device, at the head of every portable operation and of Hopper's wgrad.
// Hopper's mm walks the sizes itself (sm90/group_walk.cuh).
#pragma once

#include "core/backend.h"

namespace grouped::cuda {

// What the workspace holds. Kernels that follow on the stream read it.
struct RowMap {
  const int64_t* offsets;    // [G + 1] first row of each group; offsets[G] = S
  const int64_t* row_tiles;  // [G + 1] first row tile of each group; row_tiles[G] = how many there are; or
  const int32_t* order;      // [G] groups, up to 512 of them the largest first; the other is null
  int64_t G;
};

size_t row_map_size(int64_t G);

// Writes the map to launch.workspace, with row tiles of `tile_rows` rows that never span two groups.
Status make_row_map(const GroupSizes& sizes, int tile_rows, const Launch& launch, RowMap* map);

// Words of the workspace behind the map that are to be zero, which saves a kernel that would clear them.
struct Cleared {
  uint32_t* words = nullptr;
  int32_t count = 0;
};

// The same with map->order instead of row tiles.
Status make_ordered_row_map(const GroupSizes& sizes, const Launch& launch, Cleared cleared, RowMap* map);

// GROUPED_CHECK=1 alone: waits for the stream, reads the sizes and checks them on the host.
Status check_sizes(const GroupSizes& sizes, const Launch& launch);

}  // namespace grouped::cuda

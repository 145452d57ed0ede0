// SPDX-License-Identifier: Apache-2.0
// Which tiles a block takes, in which order. The blocks of a cluster take neighbours in a column; clusters
// walk all tiles with a stride of their number. The order decides speed alone, never a bit of a result.
#pragma once

#include "portable/schedule.cuh"
#include "sm90/block.cuh"

namespace grouped::cuda::sm90 {

// Rows of tiles walked down before one column right: tiles that run together then share few operand rows in
// L2.
inline constexpr int kBandRows = 16;

__device__ __forceinline__ TileIndex banded(int64_t tile, int64_t rows, int64_t columns, int64_t band_rows) {
  const int64_t band = tile / (band_rows * columns);
  const int64_t in_band = tile - band * band_rows * columns;
  const int64_t rest = rows - band * band_rows;
  const int64_t height = rest < band_rows ? rest : band_rows;
  const int64_t column = in_band / height;
  return {band * band_rows + in_band - column * height, column};
}

inline __device__ Tile end_tile() { return {0, 0, 0, 0, 0, 0, 0, Tile::kIsEnd}; }

// Ragged rows: row tiles of all groups in one list. A cluster takes rows 2 i and 2 i + 1 of it, which may
// belong to two groups; past the end of an odd list the second block gets a tile without rows.
template <int kColumns>
__device__ __forceinline__ void schedule_rows(const RowMap& map, int64_t N, int64_t num_blocks,
                                              TileQueue<kColumns>& queue) {
  const int64_t size = cluster_size();
  const int64_t rank = cluster_rank();
  const int64_t row_tiles = map.row_tiles[map.G];
  const int64_t rows = (row_tiles + size - 1) / size;
  const int64_t columns = (N + kColumns - 1) / kColumns;
  const int64_t clusters = gridDim.x / size;
  for (int64_t id = blockIdx.x / size; id < rows * columns; id += clusters) {
    const TileIndex index = banded(id, rows, columns, kBandRows / size);
    const int64_t first = index.row * size;
    const int64_t last = first + size - 1;
    int64_t group = find_group(map.row_tiles, map.G, first);
    const bool is_shared = size > 1 && (last >= row_tiles || last < map.row_tiles[group + 1]);
    if (rank != 0 && !is_shared) group = find_group(map.row_tiles, map.G, last);
    const int64_t row =
        map.offsets[group] + (first + rank - map.row_tiles[group]) * static_cast<int64_t>(kTileRows);
    Tile tile;
    tile.row = static_cast<int32_t>(row);
    tile.num_rows = static_cast<int32_t>(map.offsets[group + 1] - row);
    tile.column = static_cast<int32_t>(index.column * kColumns);
    tile.group = static_cast<int32_t>(group);
    tile.first_token = tile.num_tokens = 0;
    tile.num_blocks = static_cast<int32_t>(num_blocks);
    tile.flags = is_shared ? Tile::kSharesRight : 0;
    queue.tell(tile);
  }
  queue.tell(end_tile());
}

// The same without pairs across groups (make_paired_row_map): the two blocks of a cluster share a column of
// the weight, or, in the last row tile of an odd group, the rows of x.
template <int kColumns>
__device__ __forceinline__ void schedule_row_pairs(const RowMap& map, int64_t N, int64_t num_blocks,
                                                   TileQueue<kColumns>& queue) {
  const int64_t rank = cluster_rank();
  const int64_t columns = (N + kColumns - 1) / kColumns;
  const int64_t clusters = gridDim.x / 2;
  const int64_t total = map.row_tiles[map.G];
  for (int64_t id = blockIdx.x / 2; id < total; id += clusters) {
    const int64_t group = find_group(map.row_tiles, map.G, id);
    const int64_t in_group = id - map.row_tiles[group];
    const int64_t begin = map.offsets[group];
    const int64_t num_rows = map.offsets[group + 1] - begin;
    const int64_t row_tiles = (num_rows + kTileRows - 1) / kTileRows;
    const int64_t pairs = row_tiles / 2;
    int64_t row = row_tiles - 1;
    int64_t column = (in_group - pairs * columns) * 2 + rank;  // past the end: a tile without columns
    int32_t flags = Tile::kSharesLeft;
    if (in_group < pairs * columns) {
      const TileIndex index = banded(in_group, pairs, columns, kBandRows / 2);
      row = index.row * 2 + rank;
      column = index.column;
      flags = Tile::kSharesRight;
    }
    Tile tile;
    tile.row = static_cast<int32_t>(begin + row * kTileRows);
    tile.num_rows = static_cast<int32_t>(num_rows - row * kTileRows);
    tile.column = static_cast<int32_t>(column * kColumns);
    tile.group = static_cast<int32_t>(group);
    tile.first_token = tile.num_tokens = 0;
    tile.num_blocks = static_cast<int32_t>(num_blocks);
    tile.flags = flags;
    queue.tell(tile);
  }
  queue.tell(end_tile());
}

// Ragged reduction: the tiles of each group's whole result. A cluster stays in one group, so that both of its
// blocks reduce over the same rows; past the end of an odd group the second block gets a tile without rows.
// Groups come from the largest to the smallest, and clusters take turns forth and back: what a cluster gains
// in one turn it loses in the next, and the last turn is of short tiles.
template <int kColumns>
__device__ __forceinline__ void schedule_groups(const RowMap& map, int64_t out_rows, int64_t out_columns,
                                                bool skip_empty, TileQueue<kColumns>& queue) {
  const int64_t size = cluster_size();
  const int64_t rank = cluster_rank();
  const int64_t rows = (out_rows + kTileRows - 1) / kTileRows;
  const int64_t columns = (out_columns + kColumns - 1) / kColumns;
  const int64_t per_group = (rows * columns + size - 1) / size;
  const int64_t clusters = gridDim.x / size;
  const int64_t cluster = blockIdx.x / size;
  for (int64_t turn = 0; turn * clusters < map.G * per_group; ++turn) {
    const int64_t id = turn * clusters + (turn % 2 == 0 ? cluster : clusters - 1 - cluster);
    if (id >= map.G * per_group) continue;
    const int64_t place = id / per_group;
    const int64_t first = (id - place * per_group) * size;
    const int64_t group = map.order[place];
    const int64_t begin = map.offsets[group];
    const int64_t tokens = map.offsets[group + 1] - begin;
    if (skip_empty && tokens == 0) continue;
    const bool exists = first + rank < rows * columns;
    const TileIndex mine = banded(exists ? first + rank : first, rows, columns, kBandRows);
    const TileIndex other =
        banded(first + size - 1 < rows * columns ? first + size - 1 - rank : first, rows, columns, kBandRows);
    Tile tile;
    tile.row = static_cast<int32_t>(exists ? mine.row * kTileRows : rows * kTileRows);
    tile.num_rows = static_cast<int32_t>(out_rows - tile.row);
    tile.column = static_cast<int32_t>(mine.column * kColumns);
    tile.group = static_cast<int32_t>(group);
    tile.first_token = static_cast<int32_t>(begin);
    tile.num_tokens = static_cast<int32_t>(tokens);
    tile.num_blocks = static_cast<int32_t>((tokens + kReduceTile - 1) / kReduceTile);
    tile.flags = size > 1 && mine.column == other.column ? Tile::kSharesRight : 0;
    queue.tell(tile);
  }
  queue.tell(end_tile());
}

}  // namespace grouped::cuda::sm90

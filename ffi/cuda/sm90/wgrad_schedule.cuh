// SPDX-License-Identifier: Apache-2.0
// Which tiles of a grouped_wgrad a cluster takes, in which order. The order decides speed alone, never a bit
// of a result.
#pragma once

#include "portable/offsets.h"
#include "sm90/cut.cuh"
#include "sm90/piece_feed.cuh"
#include "sm90/ring.cuh"
#include "sm90/wgrad_order.h"

namespace grouped::cuda::sm90 {

// The groups at 32 places of the map's order, one in each lane: two reads, the second from where the first
// says, for each piece would take as long as a tile of few rows.
class GroupWindow {
 public:
  __device__ __forceinline__ explicit GroupWindow(const RowMap& map) : map_(map) {}

  // By all lanes, with the same argument.
  __device__ __forceinline__ void find(int32_t place, int32_t* group, int32_t* first_token,
                                       int32_t* num_tokens) {
    if (place / 32 != window_) {
      window_ = place / 32;
      const int32_t mine = window_ * 32 + static_cast<int32_t>(threadIdx.x % 32);
      if (mine < map_.G) {
        group_ = map_.order[mine];
        first_token_ = static_cast<int32_t>(map_.offsets[group_]);
        num_tokens_ = static_cast<int32_t>(map_.offsets[group_ + 1]) - first_token_;
      }
    }
    *group = __shfl_sync(0xffffffffu, group_, place % 32);
    *first_token = __shfl_sync(0xffffffffu, first_token_, place % 32);
    *num_tokens = __shfl_sync(0xffffffffu, num_tokens_, place % 32);
  }

 private:
  const RowMap& map_;
  int32_t window_ = -1;
  int32_t group_ = 0, first_token_ = 0, num_tokens_ = 0;
};

// Columns in tiles, whose first columns are those of panels of 64, or of lines; the last is no wider than it
// need be.
template <typename Shape>
class ColumnCut {
 public:
  __device__ __forceinline__ explicit ColumnCut(int64_t columns)
      : columns_(static_cast<int32_t>(columns)), cut_(columns_, !Shape::kSendsLines) {}
  __device__ __forceinline__ int32_t tiles() const { return cut_.tiles; }
  __device__ __forceinline__ int32_t first_of(int32_t tile) const { return cut_.first_of(tile); }
  __device__ __forceinline__ int32_t width_of(int32_t tile) const {
    const int32_t rest = columns_ - first_of(tile);
    return min(cut_.width_of(tile), (rest + kWidthStep - 1) / kWidthStep * kWidthStep);
  }

 private:
  int32_t columns_;
  WidthCut<Shape::kMaxWidth, 64> cut_;
};

// Who takes which piece; see Config (heuristic.h).
struct WgradOrder {
  bool asks_ahead;  // needs counters
  int32_t band_rows;
  PieceCounters* counters;  // null: clusters take turns
};

// The pieces of one cluster.
template <typename Shape>
class WgradFeed {
 public:
  __device__ __forceinline__ WgradFeed(const WgradOrder& order, int32_t pieces, Shared<Shape> shared)
      : order_(order), pieces_(pieces), feed_(order.counters, shared) {}

  // Whether pieces are asked for before next() is called.
  __device__ __forceinline__ bool is_ahead() const { return order_.asks_ahead; }
  // Past the last one: `pieces` or more. Turns go forth and back: what a cluster gains in one it loses in the
  // next.
  __device__ __forceinline__ int32_t next() {
    if (order_.counters == nullptr) {
      const int32_t clusters = gridDim.x / kClusterBlocks, cluster = blockIdx.x / kClusterBlocks;
      const int32_t piece = turn_ * clusters + (turn_ % 2 == 0 ? cluster : clusters - 1 - cluster);
      ++turn_;
      return piece;
    }
    if (is_ahead()) return feed_.next_ahead();
    int32_t piece = feed_.next(round_);
    while (piece >= pieces_ && ++round_ < feed_.rounds()) piece = feed_.next(round_);
    return piece;
  }

 private:
  const WgradOrder order_;
  const int32_t pieces_;
  PieceFeed<Shape> feed_;
  int round_ = 0;
  int32_t turn_ = 0;
};

__device__ __forceinline__ int32_t wgrad_row_tiles(int64_t out_rows) {
  return static_cast<int32_t>((out_rows + kTileRows - 1) / kTileRows);
}
// Two tiles of a result each; of an odd number, one in the last.
template <typename Shape>
__device__ __forceinline__ int32_t wgrad_pieces_of_group(int64_t out_rows, int64_t out_columns) {
  return (wgrad_row_tiles(out_rows) * ((ColumnCut<Shape>(out_columns).tiles() + 1) / 2) + 1) / 2;
}

// The tiles of each group's whole result, two at once. A cluster stays in one group, so that both of its
// blocks reduce over the same rows; past the end of an odd group the second block idles. Groups are counted
// in the map's order. old_stages(width): of a tile.
template <typename Shape, typename OldStages>
__device__ __forceinline__ void schedule_wgrad(const RowMap& map, int64_t out_rows, int64_t out_columns,
                                               bool skip_empty, const OldStages& old_stages,
                                               const WgradOrder& order, Shared<Shape> shared,
                                               TileQueue<Shape>& queue) {
  const int32_t rank = static_cast<int32_t>(cluster_rank());
  const int32_t rows = wgrad_row_tiles(out_rows);
  const ColumnCut<Shape> cut(out_columns);
  const int32_t tiles = rows * cut.tiles();
  const int32_t per_group = wgrad_pieces_of_group<Shape>(out_rows, out_columns);
  const int32_t pieces = static_cast<int32_t>(map.G) * per_group;
  GroupWindow groups(map);
  BandWalk walk(rows, (cut.tiles() + 1) / 2, order.band_rows);
  WgradFeed<Shape> feed(order, pieces, shared);
  const auto next = [&] {
    if (feed.is_ahead()) queue.wait_for_room();
    return feed.next();
  };
  for (int32_t id = next(); id < pieces; id = next()) {
    const int32_t place = static_cast<int32_t>(static_cast<uint32_t>(id) / static_cast<uint32_t>(per_group));
    const int32_t first = (id - place * per_group) * 2;
    Tile tile;
    groups.find(place, &tile.group, &tile.first_token, &tile.num_tokens);
    if (skip_empty && tile.num_tokens == 0) continue;
    tile.num_blocks = (tile.num_tokens + kReduceTile - 1) / kReduceTile;
    walk.go_to(first);
    int32_t row = walk.row + rank % 2, column = walk.column * 2 + rank / 2, other_column = column;
    const bool has_second = true;
    tile.row = row * kTileRows;
    tile.column = cut.first_of(column);
    tile.width = cut.width_of(column);
    tile.flags = max(old_stages(tile.width), old_stages(cut.width_of(other_column))) * Tile::kOldStages;
    if (has_second && column == other_column) tile.flags |= Tile::kSharesRight;
    if (!has_second && rank != 0) tile.flags |= Tile::kIsIdle;
    queue.tell(tile);
  }
  queue.tell(end_tile());
}

}  // namespace grouped::cuda::sm90

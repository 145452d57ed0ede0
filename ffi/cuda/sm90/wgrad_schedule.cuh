// SPDX-License-Identifier: Apache-2.0
// Which tiles of a grouped_wgrad a cluster takes, in which order. The order decides speed alone, never a bit
// of a result.
#pragma once

#include "portable/schedule.cuh"
#include "sm90/cut.cuh"
#include "sm90/piece_feed.cuh"
#include "sm90/ring.cuh"

namespace grouped::cuda::sm90 {

// Rows of tiles walked down before one column right: tiles that run together then share operands in L2.
inline constexpr int kWgradBandRows = 16;

__device__ __forceinline__ TileIndex banded(int64_t tile, int64_t rows, int64_t columns, int64_t band_rows) {
  const int64_t band = tile / (band_rows * columns);
  const int64_t in_band = tile - band * band_rows * columns;
  const int64_t rest = rows - band * band_rows;
  const int64_t height = rest < band_rows ? rest : band_rows;
  const int64_t column = in_band / height;
  return {band * band_rows + in_band - column * height, column};
}

// Columns in tiles, whose first columns are those of panels of 64; the last is no wider than it need be.
template <typename Shape>
class ColumnCut {
 public:
  __device__ __forceinline__ explicit ColumnCut(int64_t columns)
      : columns_(static_cast<int32_t>(columns)), cut_(columns_, true) {}
  __device__ __forceinline__ int32_t tiles() const { return cut_.tiles; }
  __device__ __forceinline__ int32_t first_of(int64_t tile) const {
    return cut_.first_of(static_cast<int32_t>(tile));
  }
  __device__ __forceinline__ int32_t width_of(int64_t tile) const {
    const int32_t rest = columns_ - first_of(tile);
    return min(cut_.width_of(static_cast<int32_t>(tile)), (rest + kWidthStep - 1) / kWidthStep * kWidthStep);
  }

 private:
  int32_t columns_;
  WidthCut<Shape::kMaxWidth, 64> cut_;
};

// Who takes which piece; see Config (heuristic.h).
struct WgradOrder {
  bool from_both_ends;
  PieceCounters* counters;  // null: clusters take turns
};

// The pieces of one cluster.
template <typename Shape>
class WgradFeed {
 public:
  __device__ __forceinline__ WgradFeed(const WgradOrder& order, int64_t pieces, Shared<Shape> shared)
      : order_(order), pieces_(pieces), feed_(order.counters, shared) {}

  // What will come next of the order, as far as is known: one further, or one back. 0: unknown.
  __device__ __forceinline__ int ahead() const {
    if (order_.counters == nullptr || !order_.from_both_ends) return 0;
    return feed_.half() == 0 ? 1 : -1;
  }
  // Past the last one: `pieces` or more. Turns go forth and back: what a cluster gains in one it loses in the
  // next.
  __device__ __forceinline__ int64_t next() {
    if (order_.counters == nullptr) {
      const int64_t clusters = gridDim.x / 2, cluster = blockIdx.x / 2;
      const int64_t piece = turn_ * clusters + (turn_ % 2 == 0 ? cluster : clusters - 1 - cluster);
      ++turn_;
      return piece;
    }
    if (order_.from_both_ends) return feed_.next_from_ends(pieces_);
    int64_t piece = feed_.next(round_);
    while (piece >= pieces_ && ++round_ < feed_.rounds()) piece = feed_.next(round_);
    return piece;
  }

 private:
  const WgradOrder order_;
  const int64_t pieces_;
  PieceFeed<Shape> feed_;
  int round_ = 0;
  int64_t turn_ = 0;
};

// The tiles of each group's whole result, two at once. A cluster stays in one group, so that both of its
// blocks reduce over the same rows; past the end of an odd group the second block idles. Groups are counted
// in the map's order. old_stages(width): of a tile.
template <typename Shape, typename OldStages, typename FetchAhead>
__device__ __forceinline__ void schedule_wgrad(const RowMap& map, int64_t out_rows, int64_t out_columns,
                                               bool skip_empty, const OldStages& old_stages,
                                               const FetchAhead& fetch_ahead,
                                               const WgradOrder& order, Shared<Shape> shared,
                                               TileQueue<Shape>& queue) {
  const int64_t rank = cluster_rank();
  const int64_t rows = (out_rows + kTileRows - 1) / kTileRows;
  const ColumnCut<Shape> cut(out_columns);
  const int64_t columns = cut.tiles();
  const int64_t per_group = (rows * columns + 1) / 2;
  const int64_t pieces = map.G * per_group;
  WgradFeed<Shape> feed(order, pieces, shared);
  for (int64_t id = feed.next(); id < pieces; id = feed.next()) {
    const int64_t place = id / per_group;
    const int64_t first = (id - place * per_group) * 2;
    const int64_t group = map.order[place];
    const int64_t begin = map.offsets[group];
    const int64_t tokens = map.offsets[group + 1] - begin;
    if (skip_empty && tokens == 0) continue;
    const bool has_second = first + 1 < rows * columns;
    const bool exists = rank == 0 || has_second;
    const TileIndex index = banded(exists ? first + rank : first, rows, columns, kWgradBandRows);
    const TileIndex other = banded(has_second ? first + 1 - rank : first, rows, columns, kWgradBandRows);
    const int32_t width = cut.width_of(index.column);
    const int32_t other_width = cut.width_of(other.column);
    Tile tile;
    tile.row = static_cast<int32_t>(index.row * kTileRows);
    tile.column = cut.first_of(index.column);
    tile.width = width;
    tile.group = static_cast<int32_t>(group);
    tile.first_token = static_cast<int32_t>(begin);
    tile.num_tokens = static_cast<int32_t>(tokens);
    tile.num_blocks = static_cast<int32_t>((tokens + kReduceTile - 1) / kReduceTile);
    tile.flags = max(old_stages(width), old_stages(other_width)) * Tile::kOldStages;
    if (!exists) {
      tile.flags |= Tile::kIsIdle;
    } else if (has_second && index.column == other.column) {
      tile.flags |= Tile::kSharesRight;
    }
    queue.tell(tile);
    const int64_t ahead = place + feed.ahead();
    if (ahead != place && ahead >= 0 && ahead < map.G) {
      const int64_t next = map.order[ahead];
      fetch_ahead(map.offsets[next], map.offsets[next + 1], first / 2, per_group);
    }
  }
  queue.tell(end_tile());
}

}  // namespace grouped::cuda::sm90

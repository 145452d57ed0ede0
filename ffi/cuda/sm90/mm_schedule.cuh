// SPDX-License-Identifier: Apache-2.0
// Which tiles of a grouped_mm a cluster takes, in which order. The order decides speed alone, never a bit of
// a result.
#pragma once

#include "sm90/cut.cuh"
#include "sm90/group_walk.cuh"
#include "sm90/piece_feed.cuh"
#include "sm90/ring.cuh"

namespace grouped::cuda::sm90 {

// How groups become work; see Config (heuristic.h).
struct MmOrder {
  bool cuts_evenly, in_order;
  PieceCounters* counters;  // null: clusters take turns
};

// What a cluster takes at once: two feature tiles of one row tile, which share x; or, where the number of
// feature tiles is odd, two row tiles of the last one, which share the weight.
template <typename Shape>
struct MmPieces {
  using Cut = WidthCut<Shape::kMaxWidth, kWidthStep>;
  static constexpr int kMostCostly = Shape::kMaxWidth / kWidthStep;
  int32_t feature_tiles;
  MmOrder order;

  __device__ __forceinline__ int cost(int32_t num_rows) const {
    return order.in_order ? kMostCostly : Cut(num_rows, order.cuts_evenly).width / kWidthStep;
  }
  __device__ __forceinline__ int32_t count(int32_t num_rows) const {
    const int32_t tiles = Cut(num_rows, order.cuts_evenly).tiles;
    return tiles * (feature_tiles / 2) + (tiles + 1) / 2 * (feature_tiles % 2);
  }
};

// Row tiles walked down before one piece right: tiles that run together then share operands in L2.
inline constexpr int kBandRows = 16;

template <typename Shape>
__device__ __forceinline__ void schedule_mm(const GroupSizes& sizes, int64_t N, int32_t num_blocks,
                                            const MmOrder& order, Shared<Shape> shared,
                                            TileQueue<Shape>& queue) {
  const int32_t feature_tiles = static_cast<int32_t>((N + kTileRows - 1) / kTileRows);
  const int32_t pairs = feature_tiles / 2;
  const int32_t rank = static_cast<int32_t>(cluster_rank());
  const MmPieces<Shape> pieces = {feature_tiles, order};
  PieceFeed<Shape> feed(order.counters, shared);
  for (int round = 0; round < feed.rounds(); ++round) {
    GroupWalk<MmPieces<Shape>> walk(sizes, pieces, pieces.kMostCostly);
    GroupPlace place;
    for (int32_t piece = feed.next(round); walk.find(piece, &place); piece = feed.next(round)) {
      const int32_t in_group = piece - place.first_piece;
      const typename MmPieces<Shape>::Cut cut(place.num_rows, order.cuts_evenly);
      int32_t row;  // row tile: may be one past the last
      int32_t feature;
      int32_t flags;
      if (in_group < cut.tiles * pairs) {
        const int32_t band = in_group / (kBandRows * pairs);
        const int32_t in_band = in_group - band * kBandRows * pairs;
        const int32_t first = band * kBandRows;
        const int32_t height = min(cut.tiles - first, kBandRows);
        const int32_t pair = in_band / height;
        row = first + in_band - pair * height;
        feature = pair * 2 + rank;
        flags = Tile::kSharesRight;
      } else {
        row = (in_group - cut.tiles * pairs) * 2 + rank;
        feature = feature_tiles - 1;
        flags = Tile::kSharesLeft;
      }
      Tile tile;
      tile.row = feature * kTileRows;
      tile.column = 0;
      tile.width = cut.width_of(row);
      tile.group = place.group;
      const int32_t first_row = cut.first_of(row);
      tile.first_token = place.first_row + first_row;
      tile.num_tokens = min(tile.width, place.num_rows - first_row);
      tile.num_blocks = num_blocks;
      tile.flags = flags | (tile.width == 0 ? Tile::kIsIdle : 0);
      queue.tell(tile);
    }
  }
  queue.tell_end();
}

}  // namespace grouped::cuda::sm90

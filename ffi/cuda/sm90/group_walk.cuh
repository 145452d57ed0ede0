// SPDX-License-Identifier: Apache-2.0
// From group sizes to row ranges inside a kernel, by one warp: no kernel in front, no memory. A scheduler
// meets its work in rising order, so it keeps 32 groups in its lanes and moves on when they are done. It
// passes over all groups several times, once for each class of work that occurs, from the most costly to the
// least: work of one class costs the same, so taking turns balances it. Rules for bad sizes are those of
// core/offsets.h: clamped values make both running sums and running maxima associative, so scans give exactly
// the sequential result.
#pragma once

#include "common/group_sizes.cuh"

namespace grouped::cuda::sm90 {

// One group and the first of its pieces of work, counted over all groups.
struct GroupPlace {
  int32_t group;
  int32_t first_row, num_rows;
  int32_t first_piece;
};

// Pieces::cost(num_rows): the class of a group of so many rows, 0 to 31; Pieces::count(num_rows): its pieces.
template <typename Pieces>
class GroupWalk {
 public:
  // T and G fit in 31 bits, and so do all pieces.
  __device__ __forceinline__ GroupWalk(const GroupSizes& sizes, Pieces pieces, int most_costly)
      : sizes_(sizes), pieces_(pieces), cost_(most_costly) {
    load(0);
    scan();
  }

  // The group of piece number `piece`, which never falls from call to call; false past the last. By all
  // lanes, with the same argument.
  __device__ __forceinline__ bool find(int32_t piece, GroupPlace* place) {
    while (piece >= __shfl_sync(kAllLanes, last_piece_, 31)) {
      pieces_before_ = __shfl_sync(kAllLanes, last_piece_, 31);
      if (window_ + 32 < sizes_.count) {
        window_ += 32;
        rows_before_ = __shfl_sync(kAllLanes, end_, 31);
      } else {
        // Every pass sees all groups, so after the first the classes are known.
        const uint32_t below = __reduce_or_sync(kAllLanes, seen_) & ((1u << cost_) - 1);
        if (below == 0) return false;
        cost_ = 31 - __clz(below);
        window_ = 0;
        rows_before_ = 0;
        load(0);
      }
      scan();
    }
    const int lane = __ffs(__ballot_sync(kAllLanes, piece < last_piece_)) - 1;
    const int before = lane == 0 ? 0 : lane - 1;
    const uint32_t begin = __shfl_sync(kAllLanes, end_, before);
    const int32_t first = __shfl_sync(kAllLanes, last_piece_, before);
    place->group = window_ + lane;
    place->first_row = static_cast<int32_t>(lane == 0 ? rows_before_ : begin);
    place->num_rows = static_cast<int32_t>(__shfl_sync(kAllLanes, end_, lane)) - place->first_row;
    place->first_piece = lane == 0 ? pieces_before_ : first;
    return true;
  }

 private:
  __device__ __forceinline__ void load(int32_t window) {
    const int32_t g = window + threadIdx.x % 32;
    next_size_ = g < sizes_.count ? static_cast<uint32_t>(clamp_size(size_at(sizes_, g), sizes_.rows)) : 0;
  }
  __device__ __forceinline__ uint32_t next_end(uint32_t a, uint32_t b) const {
    return sizes_.are_ends ? max(a, b) : min(a + b, static_cast<uint32_t>(sizes_.rows));
  }

  // Ends and piece counts of the window's groups, from the sizes that were fetched a window ago.
  __device__ __forceinline__ void scan() {
    const int lane = threadIdx.x % 32;
    end_ = lane == 0 ? next_end(rows_before_, next_size_) : next_size_;
    load(window_ + 32);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const uint32_t left = __shfl_up_sync(kAllLanes, end_, distance);
      if (lane >= distance) end_ = next_end(left, end_);
    }
    const uint32_t left = __shfl_up_sync(kAllLanes, end_, 1);
    const int32_t num_rows = static_cast<int32_t>(end_ - (lane == 0 ? rows_before_ : left));
    const int cost = pieces_.cost(num_rows);
    seen_ |= num_rows > 0 ? 1u << cost : 0;
    const bool is_now = num_rows > 0 && cost == cost_;
    last_piece_ = pieces_before_;
    if (__ballot_sync(kAllLanes, is_now) == 0) return;
    int32_t pieces = is_now ? pieces_.count(num_rows) : 0;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int32_t before = __shfl_up_sync(kAllLanes, pieces, distance);
      if (lane >= distance) pieces += before;
    }
    last_piece_ += pieces;
  }

  const GroupSizes& sizes_;
  const Pieces pieces_;
  int cost_;  // the class of this pass
  uint32_t seen_ = 0;
  int32_t window_ = 0;  // its first group
  uint32_t next_size_;
  uint32_t rows_before_ = 0;
  int32_t pieces_before_ = 0;
  // Of this lane's group; both count from the first group on.
  uint32_t end_;
  int32_t last_piece_;  // one past it
};

}  // namespace grouped::cuda::sm90

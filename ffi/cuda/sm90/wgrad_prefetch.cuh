// SPDX-License-Identifier: Apache-2.0
// Operands of weight gradients are brought into L2 ahead of their use, those of several groups at once. With
// few rows a group nearly all of memory's time goes into results. Reads that come one by one among them cost
// three times as much as their bytes, since memory turns from writing to reading for each
// (docs/kernel-log.md, 126).
#pragma once

#include "portable/offsets.h"
#include "sm90/ptx.cuh"

namespace grouped::cuda::sm90 {

// By one warp of each cluster, which share the work.
class OperandPrefetch {
 public:
  __device__ __forceinline__ OperandPrefetch(const RowMap& map, int32_t groups_at_once)
      : map_(map), groups_at_once_(groups_at_once) {}

  // The cluster has been given a piece of the group at `place` of the map's order: the first time that it is
  // among the next groups_at_once, this cluster's share of those behind them is fetched.
  __device__ __forceinline__ void at_place(int32_t place, const void* left, int64_t left_bytes,
                                           const void* right, int64_t right_bytes) {
    if (place < next_) return;
    next_ = (place / groups_at_once_ + 1) * groups_at_once_;
    const int32_t lane = static_cast<int32_t>(threadIdx.x % 32);
    const int32_t mine = next_ + lane;
    if (lane >= groups_at_once_ || mine >= map_.G) return;
    const int64_t group = map_.order[mine];
    const int64_t first = map_.offsets[group];
    const int64_t rows = map_.offsets[group + 1] - first;
    fetch_share(left, first * left_bytes, rows * left_bytes);
    fetch_share(right, first * right_bytes, rows * right_bytes);
  }

 private:
  __device__ __forceinline__ static void fetch_share(const void* data, int64_t first, int64_t bytes) {
    const int64_t clusters = gridDim.x / kClusterBlocks;
    const int64_t share = (bytes / clusters + kLineBytes) / kLineBytes * kLineBytes;
    const int64_t at = share * (blockIdx.x / kClusterBlocks);
    if (at >= bytes) return;
    prefetch_l2(static_cast<const char*>(data) + first + at, static_cast<uint32_t>(min(share, bytes - at)));
  }

  const RowMap& map_;
  const int32_t groups_at_once_;
  int32_t next_ = 0;  // the first place whose group has not been fetched
};

}  // namespace grouped::cuda::sm90

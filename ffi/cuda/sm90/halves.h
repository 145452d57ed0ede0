// SPDX-License-Identifier: Apache-2.0
// The L2 cache of a Hopper GPU has two halves, and each multiprocessor reads through the nearer one: a line
// whose home is the other half crosses a fabric of limited rate, once for each half that reads it. So
// clusters of one half take work together that shares operands.
//
// Which multiprocessors belong to which half is no documented number, so it is measured, once on each device,
// by the latency of atomics, by the first call that asks. The host never waits for the answer:
// kernels find it in device memory, and until it is there all clusters count as one half. Only speed depends
// on it.
#pragma once

#include <cstdint>

#include "common/launch.h"
#include "portable/offsets.h"

namespace grouped::cuda::sm90 {

// Of multiprocessors; both blocks of a cluster run on one pair (seen on H100, not documented; only speed
// depends on it).
inline constexpr int kMaxPairs = 96;

// In the workspace of a call (piece_feed.cuh).
struct PieceCounters {
  // Pieces that clusters of each half have been given; asked for ahead, both counts in the first word.
  unsigned long long taken[2];
  int32_t first_half;  // of as many pieces as there are clusters, the first half's share
  int32_t from_ends;   // asked for ahead: the second half takes the last pieces, else the next ones
  uint8_t half_of_pair[kMaxPairs];
};

// In a workspace that a row map begins.
inline size_t counters_offset(int64_t G) { return (row_map_size(G) + 15) / 16 * 16; }
inline PieceCounters* counters_behind_map(const Launch& launch, int64_t G) {
  return reinterpret_cast<PieceCounters*>(static_cast<char*>(launch.workspace) + counters_offset(G));
}

// The words of `counters`, which may be null, to be set to zero: all clusters are of one half then.
inline Cleared cleared_counters(PieceCounters* counters) {
  if (counters == nullptr) return {};
  return {reinterpret_cast<uint32_t*>(counters), sizeof(PieceCounters) / sizeof(uint32_t)};
}

// The first group of an ordered map, in so many pieces. If it has half of the rows, and more pieces than one
// half of the clusters takes at once, the rest of them must not wait until the other half has come to it from
// the end.
struct LeadingGroup {
  RowMap map;
  int64_t pieces;
};

// How a launch hands out its pieces.
struct HandingOut {
  int clusters;
  bool from_both_ends;
  LeadingGroup leader;  // from both ends
};

// Fills `counters` for a launch that follows on the stream. `begin`: beside, where the kernel in front is
// ours.
Status prepare_counters(const HandingOut& handing_out, const Launch& launch, Begin begin,
                        PieceCounters* counters);

}  // namespace grouped::cuda::sm90

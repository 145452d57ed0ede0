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

#include "core/backend.h"

namespace grouped::cuda::sm90 {

// Of multiprocessors; both blocks of a cluster run on one pair.
inline constexpr int kMaxPairs = 96;

// In the workspace of a call: who stands where in a turn (places.cuh).
struct ClusterPlaces {
  uint32_t arrived[2];  // clusters of each half that have taken a place
  int32_t first_half;   // places for clusters of the first half, which come first
  uint8_t half_of_pair[kMaxPairs];
};

// Fills `places` for a launch of `clusters` clusters that follows on the stream.
Status prepare_places(int clusters, const Launch& launch, ClusterPlaces* places);

}  // namespace grouped::cuda::sm90

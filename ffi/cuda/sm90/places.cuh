// SPDX-License-Identifier: Apache-2.0
// In which order clusters take turns: neighbours take pieces of work that share operands, so neighbours
// should read through the same half of L2 (halves.h).
#pragma once

#include "sm90/halves.h"
#include "sm90/ptx.cuh"

namespace grouped::cuda::sm90 {

// This cluster's place, by one thread of it. Clusters of a half take the places of their half in the order of
// their arrival; when more arrive than it has, the rest take the last places of the other one. So every place
// is taken once, wherever the clusters run.
__device__ __forceinline__ int32_t take_place(ClusterPlaces* places) {
  if (places == nullptr) return static_cast<int32_t>(blockIdx.x / 2);
  uint32_t multiprocessor;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
  const uint32_t pair = multiprocessor / 2;
  const int half = pair < kMaxPairs ? places->half_of_pair[pair] : 0;
  const int32_t clusters = static_cast<int32_t>(gridDim.x / 2);
  const int32_t first_half = places->first_half;
  const int32_t rank = static_cast<int32_t>(atomicAdd(&places->arrived[half], 1u));
  const int32_t excess = rank - (half == 0 ? first_half : clusters - first_half);
  if (excess < 0) return half == 0 ? rank : first_half + rank;
  return (half == 0 ? clusters : first_half) - 1 - excess;
}

// Turn by turn each cluster takes one piece. Within its half it changes places from turn to turn, lest one
// gets all the wide tiles of groups that repeat.
class Turns {
 public:
  __device__ __forceinline__ Turns(const ClusterPlaces* places, int32_t place)
      : clusters_(static_cast<int32_t>(gridDim.x / 2)) {
    const int32_t first_half = places == nullptr ? clusters_ : places->first_half;
    first_ = place < first_half ? 0 : first_half;
    count_ = place < first_half ? first_half : clusters_ - first_half;
    rank_ = place - first_;
  }
  // Rises from turn to turn.
  __device__ __forceinline__ int64_t piece() const { return begin_ + first_ + rank_; }
  __device__ __forceinline__ void advance() {
    begin_ += clusters_;
    rank_ = rank_ + 1 == count_ ? 0 : rank_ + 1;
  }

 private:
  int32_t clusters_;
  int32_t first_, count_, rank_;
  int64_t begin_ = 0;
};

}  // namespace grouped::cuda::sm90

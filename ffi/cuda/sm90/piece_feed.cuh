// SPDX-License-Identifier: Apache-2.0
// Which piece of work a cluster takes next. Without counters clusters take turns. With counters each asks
// when it has room for more, so that uneven pieces balance; neighbours in the order share operands, so
// clusters that read through the same half of L2 (halves.h) ask for neighbours, and help the other half when
// their own is done.
#pragma once

#include "sm90/halves.h"
#include "sm90/shape.cuh"

namespace grouped::cuda::sm90 {

// Pieces are counted in 32 bits: more of them fit in no memory, and the scheduling warps have few registers.
inline constexpr int32_t kNoPiece = INT32_MAX;

// The scheduling warps of a cluster's blocks hold one each and ask it the same questions; the first block
// asks the counters, and both hear the answer through their shared memory.
template <typename Shape>
class PieceFeed {
 public:
  __device__ __forceinline__ PieceFeed(PieceCounters* counters, Shared<Shape> shared)
      : counters_(counters), shared_(shared), clusters_(static_cast<int32_t>(gridDim.x / kClusterBlocks)) {
    if (counters == nullptr) {
      place_ = static_cast<int32_t>(blockIdx.x / kClusterBlocks);
    } else {
      uint32_t multiprocessor;
      asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
      const uint32_t pair = multiprocessor / 2;
      half_ = pair < kMaxPairs ? counters->half_of_pair[pair] : 0;
      first_half_ = counters->first_half;
      from_ends_ = counters->from_ends != 0;
    }
  }

  // How often the walk over the work begins anew: for the own half's share, then for the other's.
  __device__ __forceinline__ int rounds() const { return counters_ == nullptr ? 1 : 2; }

  // By all lanes. Rises while `round` is the same.
  __device__ __forceinline__ int32_t next(int round) {
    if (counters_ == nullptr) return next_in_turn();
    if (threadIdx.x % 32 == 0 && cluster_rank() == 0) tell(ask(round == 0 ? half_ : 1 - half_));
    return hear();
  }

  // Needs counters. By all lanes, while one thread of another warp of the first block gives them: the
  // counters' answer takes as long as a piece of few rows, so it is asked for before it is needed. All take
  // the first pieces that are left; or one half does, and the other takes the last ones, until they meet.
  __device__ __forceinline__ int32_t next_ahead() { return hear(); }
  __device__ __forceinline__ void give_ahead(int32_t pieces) {
    int32_t piece;
    do {
      wait_for_slot();  // asked for no earlier, so that the last pieces are shared out evenly
      piece = ask_ahead(pieces);
      tell(piece);
    } while (piece != kNoPiece);
  }

 private:
  // Clusters change places from turn to turn, lest one gets all the wide tiles of groups that repeat.
  __device__ __forceinline__ int32_t next_in_turn() {
    const int32_t piece = turn_ * clusters_ + place_;
    ++turn_;
    place_ = place_ + 1 == clusters_ ? 0 : place_ + 1;
    return piece;
  }

  // Of as many pieces as there are clusters, each half has its share, one after another.
  __device__ __forceinline__ int32_t ask(int half) {
    const uint32_t share = half == 0 ? first_half_ : clusters_ - first_half_;
    if (share == 0) return kNoPiece;
    const uint32_t count = static_cast<uint32_t>(atomicAdd(&counters_->taken[half], 1ull));
    const uint32_t turn = count / share;
    return static_cast<int32_t>(turn * clusters_ + (half == 0 ? 0 : first_half_) + (count - turn * share));
  }

  // Both counts are in one word, so no piece is given twice.
  __device__ __forceinline__ int32_t ask_ahead(int32_t pieces) {
    const unsigned long long taken = atomicAdd(&counters_->taken[0], half_ == 0 ? 1ull : 1ull << 32);
    const int32_t first_ones = static_cast<int32_t>(taken & 0xffffffffu);
    const int32_t last_ones = static_cast<int32_t>(taken >> 32);
    if (first_ones + last_ones >= pieces) return kNoPiece;
    if (!from_ends_) return first_ones + last_ones;
    return half_ == 0 ? first_ones : pieces - 1 - last_ones;
  }

  // One thread of the first block tells, all lanes of both blocks' scheduling warps hear.
  __device__ __forceinline__ void wait_for_slot() const {
    barrier_wait(shared_.forgotten(told_.at), told_.parity ^ 1);
  }
  __device__ __forceinline__ void tell(int32_t piece) {
    wait_for_slot();
    for (uint32_t rank = 0; rank < kClusterBlocks; ++rank)
      store_at_block(shared_.piece(told_.at), static_cast<uint32_t>(piece), shared_.fed(told_.at), rank);
    told_.advance();
  }
  __device__ __forceinline__ int32_t hear() {
    const bool listens = threadIdx.x % 32 == 0;
    int32_t piece = 0;
    if (listens) {
      barrier_expect(shared_.fed(heard_.at), sizeof(piece));
      barrier_wait(shared_.fed(heard_.at), heard_.parity);
      piece = static_cast<int32_t>(load_shared_4(shared_.piece(heard_.at)));
    }
    piece = __shfl_sync(0xffffffffu, piece, 0);  // its value has been used then (barrier_arrive_at)
    if (listens) barrier_arrive_at(shared_.forgotten(heard_.at), 0);
    heard_.advance();
    return piece;
  }

  PieceCounters* counters_;
  Shared<Shape> shared_;
  int32_t clusters_;
  int32_t turn_ = 0;
  int32_t place_ = 0;
  int half_ = 0;
  int32_t first_half_ = 0;
  bool from_ends_ = false;
  Cursor<Shared<Shape>::kFeedSlots> told_, heard_;  // the next slot to tell, to hear
};

}  // namespace grouped::cuda::sm90

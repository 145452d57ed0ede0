// SPDX-License-Identifier: Apache-2.0
// Which piece of work a cluster takes next. Without counters clusters take turns. With counters each asks
// when it has room for more, so that uneven pieces balance; neighbours in the order share operands, so
// clusters that read through the same half of L2 (halves.h) ask for neighbours, and help the other half when
// their own is done.
#pragma once

#include "sm90/halves.h"
#include "sm90/shape.cuh"

namespace grouped::cuda::sm90 {

inline constexpr int64_t kNoPiece = INT64_MAX;

// The scheduling warps of a cluster's blocks hold one each and ask it the same questions: the first block's
// asks the counters and tells the other.
template <typename Shape>
class PieceFeed {
 public:
  __device__ __forceinline__ PieceFeed(PieceCounters* counters, Shared<Shape> shared)
      : counters_(counters), shared_(shared), clusters_(static_cast<int32_t>(gridDim.x / 2)) {
    if (counters == nullptr) {
      place_ = static_cast<int32_t>(blockIdx.x / 2);
    } else {
      uint32_t multiprocessor;
      asm volatile("mov.u32 %0, %%smid;" : "=r"(multiprocessor));
      const uint32_t pair = multiprocessor / 2;
      half_ = pair < kMaxPairs ? counters->half_of_pair[pair] : 0;
      first_half_ = counters->first_half;
    }
  }

  __device__ __forceinline__ int half() const { return half_; }
  // How often the walk over the work begins anew: for the own half's share, then for the other's.
  __device__ __forceinline__ int rounds() const { return counters_ == nullptr ? 1 : 2; }

  // By all lanes. Rises while `round` is the same.
  __device__ __forceinline__ int64_t next(int round) {
    if (counters_ == nullptr) return next_in_turn();
    return agree([&] { return ask(round == 0 ? half_ : 1 - half_); });
  }

  // Needs counters. Of `pieces`, fewer than 2^31, one half takes the first ones and the other the last ones,
  // until they meet. Both counts are in one word, so no piece is given twice.
  __device__ __forceinline__ int64_t next_from_ends(int64_t pieces) {
    return agree([&] {
      const unsigned long long taken = atomicAdd(&counters_->taken[0], half_ == 0 ? 1ull : 1ull << 32);
      const int64_t first_ones = static_cast<int64_t>(taken & 0xffffffffu);
      const int64_t last_ones = static_cast<int64_t>(taken >> 32);
      if (first_ones + last_ones >= pieces) return kNoPiece;
      return half_ == 0 ? first_ones : pieces - 1 - last_ones;
    });
  }

 private:
  // Clusters change places from turn to turn, lest one gets all the wide tiles of groups that repeat.
  __device__ __forceinline__ int64_t next_in_turn() {
    const int64_t piece = turn_ * clusters_ + place_;
    ++turn_;
    place_ = place_ + 1 == clusters_ ? 0 : place_ + 1;
    return piece;
  }

  // Of as many pieces as there are clusters, each half has its share, one after another.
  __device__ __forceinline__ int64_t ask(int half) {
    const int32_t share = half == 0 ? first_half_ : clusters_ - first_half_;
    if (share == 0) return kNoPiece;
    const int64_t count = static_cast<int64_t>(atomicAdd(&counters_->taken[half], 1ull));
    const int64_t turn = count / share;
    return turn * clusters_ + (half == 0 ? 0 : first_half_) + (count - turn * share);
  }

  // The first block's scheduler asks with `choose` and tells the other's.
  template <typename Choose>
  __device__ __forceinline__ int64_t agree(const Choose& choose) {
    int64_t piece = 0;
    if (threadIdx.x % 32 == 0) {
      if (cluster_rank() == 0) {
        piece = choose();
        barrier_wait(shared_.forgotten(cursor_.at), cursor_.parity ^ 1);
        store_at_other_block(shared_.piece(cursor_.at), piece, shared_.fed(cursor_.at));
      } else {
        piece = hear();
      }
    }
    cursor_.advance();
    return __shfl_sync(0xffffffffu, piece, 0);
  }
  __device__ __forceinline__ int64_t hear() {
    barrier_expect(shared_.fed(cursor_.at), sizeof(int64_t));
    barrier_wait(shared_.fed(cursor_.at), cursor_.parity);
    const int64_t piece = load_shared_long(shared_.piece(cursor_.at));
    barrier_arrive_released(shared_.forgotten(cursor_.at), 0);
    return piece;
  }

  PieceCounters* counters_;
  Shared<Shape> shared_;
  int32_t clusters_;
  int64_t turn_ = 0;
  int32_t place_ = 0;
  int half_ = 0;
  int32_t first_half_ = 0;
  Cursor<Shared<Shape>::kFeedSlots> cursor_;
};

}  // namespace grouped::cuda::sm90

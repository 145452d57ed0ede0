// SPDX-License-Identifier: Apache-2.0
// The buffers through which results leave, and whose turn it is to write into them.
#pragma once

#include "sm90/shape.cuh"

namespace grouped::cuda::sm90 {

// Buffers through which one multiplier's result leaves: each piece by next(), written(), sent(). Where what
// the result held comes here too, by fetch(), well before, then fetched(), added(), sent().
template <typename Shape>
class Staging {
  // With three or more, the thread that sends the pieces makes sure that the next one is free before all meet
  // over the one that they wrote. With two that would wait for the copy just begun, so they meet once more.
  static constexpr bool kMeetsOnce = Shape::kPieces > 2;
  static_assert(kMeetsOnce || !Shape::kSharesBuffers, "all of a turn's buffers are free when it begins");

 public:
  static constexpr int kTurnThreads = 128;  // that must have ended it
  static constexpr bool kEndsTurnsEarly = false;

  __device__ __forceinline__ Staging(Shared<Shape> shared, int index)
      : shared_(shared), buffers_(shared.staging(index)), index_(index), turn_(index == 0 ? 1 : 0) {}

  // Where the multipliers share the buffers each has them for all pieces of a tile, by turns. begin_turn()
  // waits until the other's pieces have left them.
  __device__ __forceinline__ void begin_turn() {
    if constexpr (Shape::kSharesBuffers) {
      barrier_wait(shared_.may_write(index_), turn_);
      __syncwarp();  // whole warps write the pieces
      turn_ ^= 1;
      has_turn_ = true;
      slot_ = 0;
    }
  }
  // If a turn has begun. Well after the last piece was sent, since this waits until the copy engine has read
  // it. By each thread, as it may have read the buffers itself: racecheck follows neither meetings of a warp
  // nor named barriers that some only arrive at.
  __device__ __forceinline__ void end_turn() {
    if (!Shape::kSharesBuffers || !has_turn_) return;
    has_turn_ = false;
    if (threadIdx.x % 128 == 0) store_wait_read<0>();
    barrier_arrive(shared_.may_write(1 - index_));
  }

  // Where to write the next piece.
  __device__ __forceinline__ uint32_t next() const {
    if constexpr (!kMeetsOnce) {
      if (threadIdx.x % 128 == 0) store_wait_read<Shape::kPieces - 1>();
      named_barrier<128>(1 + index_);
    }
    return buffer(slot_);
  }
  // All threads have written it, and the copy engine may read it. `piece`: its number in the tile, `pieces`:
  // those of the tile.
  __device__ __forceinline__ void written(int piece, int pieces) const {
    async_proxy_fence();
    const bool needs_next = !Shape::kSharesBuffers || (piece + 1 >= Shape::kPieces && piece + 1 < pieces);
    if (kMeetsOnce && needs_next && threadIdx.x % 128 == 0) store_wait_read<Shape::kPieces - 2>();
    named_barrier<128>(1 + index_);
  }
  // Its copies, if any, are under way.
  __device__ __forceinline__ void sent() {
    if (threadIdx.x % 128 == 0) store_commit();
    advance();
  }

  // By the sending thread: `copy(to, filled)` begins to fill the buffer of the next piece, or of the one
  // `ahead` behind it. The copy engine must have read what they held.
  template <typename Copy>
  __device__ __forceinline__ void fetch(int ahead, const Copy& copy) const {
    const int slot = slot_ + ahead < Shape::kPieces ? slot_ + ahead : slot_ + ahead - Shape::kPieces;
    const uint32_t filled = shared_.fetched(index_, slot);
    barrier_expect(filled, Shared<Shape>::kPieceBytes);
    copy(buffer(slot), filled);
  }
  // Where the next piece's old values are, and its new ones go.
  __device__ __forceinline__ uint32_t fetched() const {
    barrier_wait(shared_.fetched(index_, slot_), parity_);
    __syncwarp();
    return buffer(slot_);
  }
  // All threads have added to it, and the copy engine may read it. That the next buffer is free is for its
  // own barrier to say.
  __device__ __forceinline__ void added() const {
    async_proxy_fence();
    named_barrier<128>(1 + index_);
  }
  // By the sending thread: then only the newest of its pieces may still be read.
  __device__ __forceinline__ void wait_for_older() const { store_wait_read<1>(); }

 private:
  __device__ __forceinline__ uint32_t buffer(int slot) const {
    return buffers_ + slot * Shared<Shape>::kPieceBytes;
  }
  __device__ __forceinline__ void advance() {
    if (++slot_ == Shape::kPieces) {
      slot_ = 0;
      parity_ ^= 1;
    }
  }

  Shared<Shape> shared_;
  uint32_t buffers_;
  int index_;
  uint32_t turn_;  // the parity of the next one
  bool has_turn_ = false;
  int slot_ = 0;
  uint32_t parity_ = 0;  // of the barriers of fetched pieces
};

// The same for results whose 128-byte lines are each one warp's (weight gradients that are not added to what was
// there): every warp sends its own 16 rows, so none waits for the others. Each piece by next(), sent().
template <typename Shape>
class WarpStaging {
 public:
  static constexpr int kTurnThreads = 32;
  static constexpr bool kEndsTurnsEarly = true;
  static constexpr int kRows = 16;
  static constexpr uint32_t kBytes = kRows * kLineBytes;
  static constexpr int kBuffers = Shape::kPieces * Shared<Shape>::kPieceBytes / 4 / kBytes;

  __device__ __forceinline__ WarpStaging(Shared<Shape> shared, int index)
      : shared_(shared),
        warp_(threadIdx.x % 128 / 32),
        buffers_(shared.staging(index) + warp_ * kBuffers * kBytes),
        index_(index),
        turn_(index == 0 ? 1 : 0) {}

  // As Staging's.
  __device__ __forceinline__ void begin_turn() {
    if constexpr (Shape::kSharesBuffers) {
      barrier_wait(shared_.may_write(index_, warp_), turn_);
      __syncwarp();
      turn_ ^= 1;
      has_turn_ = true;
    }
  }
  __device__ __forceinline__ void end_turn() {
    if (!Shape::kSharesBuffers || !has_turn_) return;
    has_turn_ = false;
    if (threadIdx.x % 32 == 0) store_wait_read<0>();
    barrier_arrive(shared_.may_write(1 - index_, warp_));
  }

  // Where to write the next piece.
  __device__ __forceinline__ uint32_t next() const {
    if (threadIdx.x % 32 == 0) store_wait_read<kBuffers - 1>();
    __syncwarp();
    return buffers_ + slot_ * kBytes;
  }
  // All lanes have written it. send(): by one lane, begins its copy.
  template <typename Send>
  __device__ __forceinline__ void send(const Send& send) {
    async_proxy_fence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      send();
      store_commit();
    }
    if (++slot_ == kBuffers) slot_ = 0;
  }

 private:
  Shared<Shape> shared_;
  int warp_;
  uint32_t buffers_;
  int index_;
  uint32_t turn_;  // the parity of the next one
  bool has_turn_ = false;
  int slot_ = 0;
};

}  // namespace grouped::cuda::sm90
